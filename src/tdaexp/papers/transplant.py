"""Layers of one checkpoint in another: accuracy at once, and of new trainings that start from them.

Source: ExPLAIND (Eichin et al. 2026), Figures 3b, 10 and 11. A graft is a set of components whose weights come from a
donor. A retraining starts from new random weights, the graft's parameters replaced; all of them train on, by the
task's own settings. Each is a run of its own in the cache, so that a killed study goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call

from tdaexp.data.tensors import TensorExamples
from tdaexp.models.discovery import discovered
from tdaexp.papers.base import Evidence
from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.progress import track
from tdaexp.training.recorded import fit_recorded
from tdaexp.training.settings import FitSettings
from tdaexp.training.task import TrainedTask
from tdaexp.training.task_problem import Classification

Parameters = Mapping[str, Tensor]
Groups = Mapping[str, Sequence[str]]
"""Name of a graft -> its components; `layers.0.attn` stands for all that begin so."""


def parameters_of(task: TrainedTask, group: str, components: Sequence[str]) -> list[str]:
    """Names of the parameters of a graft. Errors (UserError): no such component."""
    members, names = discovered(task.module).members(task.module), []
    for component in components:
        found = [own for own in members if own == component or own.startswith(f"{component}.")]
        if not found:
            raise unknown("component", component, members, f"analysis.grafts: {group}")
        names += [name for own in found for name in members[own]]
    return names


def rests(groups: Groups) -> dict[str, str]:
    """To each graft the one of all other components that any of them names, where there is such a one."""
    every = {component for components in groups.values() for component in components}
    return {one: other for one in groups for other in groups if set(groups[one]) == every - set(groups[other])}


def grafted(host: Parameters, donor: Parameters, names: Sequence[str]) -> dict[str, Tensor]:
    """The host's parameters, those in `names` from the donor."""
    return {**host, **{name: donor[name] for name in names}}


@torch.no_grad()
def answers(module: torch.nn.Module, parameters: Parameters, examples: TensorExamples) -> np.ndarray:
    """Predicted classes [N]."""
    return np.asarray(functional_call(module, dict(parameters), (examples.inputs,)).argmax(1).numpy())


def swap_accuracies(task: TrainedTask, groups: Groups, hosts: Sequence[int]) -> pd.DataFrame:
    """Test accuracy of checkpoints (`step`) as they are (`none`) and with each graft from the final model."""
    module, trajectory = task.module.to("cpu"), task.trajectory
    donor = trajectory.parameters(trajectory.settings.total)
    named = {"none": [], **{group: parameters_of(task, group, components) for group, components in groups.items()}}
    targets, rows = task.corpus.test.targets.numpy(), []
    for step in track(hosts, "layer swaps", len(hosts)):
        host = trajectory.parameters(step)
        for group, names in named.items():
            right = answers(module, grafted(host, donor, names), task.corpus.test) == targets
            rows.append({"step": step, "graft": group, "accuracy": float(right.mean())})
    return pd.DataFrame(rows)


def confusion(task: TrainedTask, step: int, names: Sequence[str], classes: int) -> np.ndarray:
    """Counts [right class, answer] on the test set of a checkpoint with `names` from the final model."""
    trajectory = task.trajectory
    donor = trajectory.parameters(trajectory.settings.total)
    parameters = grafted(trajectory.parameters(step), donor, names)
    given = answers(task.module.to("cpu"), parameters, task.corpus.test)
    counts = np.zeros((classes, classes), dtype=np.int64)
    inside = given < classes  # a task may have tokens that are no answer
    np.add.at(counts, (task.corpus.test.targets.numpy()[inside], given[inside]), 1)
    return counts


def retrainings(
    evidence: Evidence, groups: Groups, donors: Sequence[int], seeds: int, steps: int, fresh: float | None = None
) -> pd.DataFrame:
    """Accuracies of new trainings by `graft`, `donor` step, `seed` and `step`; columns train and test accuracy.

    The other weights are drawn from a normal distribution of standard deviation `fresh`; None: as the model begins.

    Seeds 1 … `seeds` draw the other weights: 0, the task's own by default, would give back what the donor started from.
    """
    task = evidence.task
    settings = dataclasses.replace(
        evidence.config.trainer.fit, steps=steps, record=0, evaluate_every=max(1, min(10, steps // 5))
    )
    jobs = [(group, donor, seed) for donor in donors for group in groups for seed in range(1, seeds + 1)]
    rows = []
    for group, donor, seed in track(jobs, "retraining from grafts", len(jobs)):
        names = parameters_of(task, group, groups[group])
        for entry in _retrained(evidence, names, donor, seed, settings, fresh):
            if "test/accuracy" in entry:
                rows.append(
                    {"graft": group, "donor": donor, "seed": seed, "step": int(entry["step"])}
                    | {key: entry[f"{key}/accuracy"] for key in ("train", "test")}
                )
    return pd.DataFrame(rows)


def _retrained(
    evidence: Evidence,
    names: Sequence[str],
    donor: int,
    seed: int,
    settings: FitSettings,
    fresh: float | None,
) -> list[dict[str, Any]]:
    """Curves of one new training, from the cache where it is done."""
    task, config = evidence.task, evidence.config
    seed += config.model.seed
    folder = evidence.cache(
        "retrained", task.fingerprint, list(names), donor, seed, fresh, dataclasses.asdict(settings), by=_retrained
    )
    note = folder / "model" / "training.json"
    if not note.exists():
        module = dataclasses.replace(config.model, seed=seed, start=None).build(task.corpus)
        own = {name: parameter.detach() for name, parameter in module.named_parameters()}
        if fresh is not None:
            generator = torch.Generator().manual_seed(seed)
            own = {name: fresh * torch.randn(value.shape, generator=generator) for name, value in own.items()}
        start = grafted(own, task.trajectory.parameters(donor), names)
        module.load_state_dict(start, strict=False)
        identity = fingerprint({name: tensor.numpy() for name, tensor in start.items()})
        fit_recorded(Classification(module, task.corpus), settings, folder=folder, seed=config.seed, identity=identity)
    seal.require(note.parent)
    return _curves(note)


def _curves(note: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(note.read_text(encoding="utf-8"))["curves"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{note}: not readable ({error}); delete {note.parent.parent} and run again") from error
    return found
