"""ExPLAIND on a list of checkpoints: one simulated update at each, its loss change decomposed.

Source: Eichin et al. 2026, section 6 and remark F.3. From a checkpoint's parameters and its optimiser's state, a batch
drawn for it makes one update of AdamW; the change of the mean loss per token of held-out examples is decomposed into
`influence` (the batch's own share), `regularisation` and `first_moment`, the stored average's, which no example can be
charged with. Skipped steps are not made up for by rescaling, as in the paper's own experiment. Sign: contributions to
the negative loss, so that a positive value means that the held-out text became more likely. Additive over parts,
components and groups. Each checkpoint is a block on disk, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import torch
import xarray as xr
from torch import nn

from tdaexp import influence
from tdaexp.data.groups import ALL
from tdaexp.data.records import HELD_OUT
from tdaexp.models.components import ComponentMap
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.streaming import Slab
from tdaexp.paths.checkpoint_step import NORMS, NUMBERS, Plan, decompose
from tdaexp.paths.entry_error import share
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.training.history import ListedCheckpoints

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
ONE_IN = 16
"""Of so many checkpoints, evenly spaced, one has its entries checked."""
NAMES = {"kernel": "influence", "regularisation": "regularisation", "first_moment": "first_moment"}


def decompose_checkpoints(
    problem: Problem, history: ListedCheckpoints, keep: frozenset[str], quadrature: Quadrature
) -> xr.Dataset:
    """Decompose the held-out loss's change in one simulated update at each checkpoint.

    `keep` may hold component, query and train, the last two by group; step is always kept. The store has `influence`
    [query, train, component, step], `regularisation` and `first_moment` (no train) over the axes that were kept,
    `importance…` [component, step], their absolute values summed over groups; `start`, `change`, `explained` and
    `residual` [query, step]; `nodes`, `lr`, `gradient_norm`, `batch_loss`, `residual_norm`, `change_norm` [step]; and
    the coordinate `stored` [step], whether the optimiser's state was the checkpoint's own. `entry_error` [step], and as
    an attribute over all: what entries of `influence` are off by, as a share of them, estimated at one of 16.
    """
    plan = _plan(problem, history, keep, quadrature)
    count = len(history.snapshots)
    fresh = sum(one.state is None for one in history.snapshots)
    if fresh:
        log.warning(
            "%d of %d checkpoints hold no state of the optimiser: assumed is an AdamW that begins anew there (both "
            "averages zero), with the learning rate and weight decay of trainer.fit", fresh, count,
        )  # fmt: skip
    settings = [problem.seed, list(plan.queries), plan.groups, asdict(quadrature)]
    folder = problem.store("checkpoints", history.identity, *settings, by=decompose_checkpoints)
    store = BlockStore(folder, plan.arrays(count), [slice(k, k + 1) for k in range(count)])
    few = max(1, count // ONE_IN)
    checked = {(2 * place + 1) * count // (2 * few) for place in range(few)}
    with store.pending() as missing:
        for block in store.each(missing, "decomposition, checkpoints"):
            found = decompose(plan, history.snapshots[block], block in checked)
            store.write(block, {name: value[None] for name, value in found.items()})
    return _label(plan, keep, store.read())


def _plan(problem: Problem, history: ListedCheckpoints, keep: frozenset[str], quadrature: Quadrature) -> Plan:
    names = sorted(set(history.query_groups)) if "query" in keep else [ALL]
    queries = {name: [place for place, own in enumerate(history.query_groups) if name in (ALL, own)] for name in names}
    groups = sorted(set(history.groups)) if "train" in keep else []
    return Plan(problem, history, quadrature, queries, groups, slabs_of(problem.model, problem.map))


def slabs_of(model: nn.Module, components: ComponentMap) -> list[Slab]:
    """Every parameter's share in each of the components, numbered in their order."""
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    slabs: list[Slab] = []
    seen: set[tuple[str, int]] = set()
    for number, component in enumerate(components.components):
        for part in component.parts:
            slabs += [Slab(number, name) for name in part.parameters]
            rows = None if part.rows is None else torch.from_numpy(part.rows)
            own = {} if part.parameters else dict(model.get_submodule(part.module).named_parameters(recurse=False))
            for kind, tensor in own.items():
                name = parameters[id(tensor)]
                if (name, number) not in seen or rows is not None:  # a tied head is the embedding's own tensor
                    slabs.append(Slab(number, name, rows, int(part.kind == "conv1d" and kind == "weight")))
                seen.add((name, number))
    return slabs


def _label(plan: Plan, keep: frozenset[str], arrays: Arrays) -> xr.Dataset:
    data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for part, name in NAMES.items():
        train = part == "kernel" and plan.groups
        dims = ("step", "component", "train", "query") if train else ("step", "component", "query")
        summed = tuple(place for place, axis in enumerate(dims) if axis not in (*keep, "step"))
        data[name] = (tuple(axis for axis in dims if axis in (*keep, "step")), arrays[part].sum(axis=summed))
        size = np.abs(arrays[part].sum(axis=2) if train else arrays[part]).sum(axis=-1)
        if "component" in keep:
            data["importance" if part == "kernel" else f"importance_{part}"] = (("step", "component"), size)
    change = arrays["after"] - arrays["before"]
    pair = {"start": arrays["before"], "change": change, "residual": arrays["residual"]}
    pair["explained"] = change - arrays["residual"]
    data |= {name: (("step", "query"), values) for name, values in pair.items()}
    data |= {name: (("step",), arrays[name]) for name in NUMBERS}
    # of the whole held-out loss: its groups' parts sum to it
    data |= {f"{name}_norm": (("step",), np.abs(pair[name].sum(axis=1))) for name in ("change", "residual")}
    entries, errors = (arrays[name] for name in NORMS)
    data["entry_error"] = (("step",), np.divide(errors, entries, out=np.full(len(entries), np.nan), where=entries > 0))
    snapshots, components = plan.history.snapshots, plan.problem.map
    coords: dict[str, object] = {
        "step": np.array([one.step for one in snapshots], dtype=np.int64),
        "stored": ("step", np.array([one.state is not None for one in snapshots])),
        "query": np.array(list(plan.queries), dtype=object),
        "query_set": ("query", np.array([HELD_OUT] * len(plan.queries), dtype=object)),
    }
    if "component" in keep:
        coords |= {"component": np.array(components.names, dtype=object)}
        coords |= {"size": ("component", components.sizes)}
    if plan.groups:
        coords["train"] = np.array(plan.groups, dtype=object)
    dataset = xr.Dataset(data, coords)
    order = [axis for axis in ("query", "train", "component", "step") if axis in dataset.dims]
    return dataset.transpose(*order).assign_attrs(
        format_version=influence.FORMAT_VERSION, normalise="none", output="loss", keep=sorted(keep | {"step"}),
        updates="simulated", entry_error=share(np.nansum(errors**2) ** 0.5, np.nansum(entries**2) ** 0.5),
    )  # fmt: skip
