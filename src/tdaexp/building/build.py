"""The one way from a checked configuration to what it describes: trainings, and a problem."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tdaexp.building.checkpoints import Checkpoints
from tdaexp.building.language import Texts
from tdaexp.building.recorded import Recorded
from tdaexp.building.retraining import recipe_of
from tdaexp.building.settings import Asked, Builder, Named, Training
from tdaexp.building.tasks import Tasks, load_task
from tdaexp.building.texts import load_model, load_successor
from tdaexp.models.loaded import LoadedModel
from tdaexp.problem import Problem
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing
from tdaexp.training.task import TrainedTask, check_pair

log = logging.getLogger(__name__)


def builder_of(config: Asked) -> Builder:
    """Who builds the problem that the configured method is given.

    Errors (UserError): one half of a task with a language model or with text, a list of checkpoints for a method that
    reads one model.
    """
    method = config.method
    if check_pair(config.model, config.dataset):
        return Tasks(config)
    if method.decomposes:
        return Recorded(config) if config.trainer.fit.record else Checkpoints(config)
    if getattr(config.model, "checkpoints", None):
        raise UserError(f"model.checkpoints: method={method.name} reads one model; only explaind reads a list")
    return Texts(config)


def built(config: Asked, builder: Builder, clock: Clock) -> Problem:
    """The builder's problem, with how its model's training can be made again.

    The recipe is made when it is asked for. Errors (UserError) of that: the model was not trained here.
    """
    return replace(builder.problem(clock), recipe=partial(recipe_of, config))


def trainings(config: Named) -> Iterator[Training]:
    """Train the configured model, in both stages where it has two, or find what was trained before.

    Errors (UserError): one half of a task with a language model or with text, and what no training can have.
    """
    if check_pair(config.model, config.dataset):
        yield _recorded(load_task(config))
    elif config.trainer.fit.record:
        yield _recorded(Recorded(config).trained())
    else:
        yield from _of_texts(config)


def _recorded(task: TrainedTask) -> Training:
    measures = [{name if "/" in name else f"train/batch_{name}": value for name, value in entry.items()}
                for entry in task.note["curves"]]  # fmt: skip
    curves = [(int(entry.pop("train/batch_step")), entry) for entry in measures]
    return Training(task.folder, curves, {"train/steps": float(curves[-1][0]), **curves[-1][1]})


def _of_texts(config: Named) -> Iterator[Training]:
    doing("reading the data")
    if not config.model.needs_training:
        log.info("model.pretrained is set: training goes on from those weights")
    loaded = load_model(config, config.dataset.train_records(), always_train=True)
    yield _language(loaded, "train")
    successor = load_successor(config, config.dataset.finetune_records(), loaded)
    if successor is not None and config.model.finetuned is None:
        yield _language(successor, "finetune")


def _language(loaded: LoadedModel, stage: str) -> Training:
    folder = Path(str(loaded.model.name_or_path))
    losses = json.loads((folder / "training.json").read_text(encoding="utf-8"))["loss"]
    curves = [(step, {f"{stage}/loss": loss}) for step, loss in enumerate(losses, start=1)]
    return Training(folder, curves, {f"{stage}/steps": float(len(losses)), **(curves[-1][1] if curves else {})})
