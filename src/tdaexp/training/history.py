"""What a training left on its way, as a problem's history: checkpoints, or a recording of its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tdaexp.data.groups import stratified
from tdaexp.history import Course, Moment
from tdaexp.models.adapted import base_of
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.quantised import kind_of
from tdaexp.objectives.base import ExampleList
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.hub import runs_own_code
from tdaexp.training.checkpoint_list import Snapshot
from tdaexp.training.kept import Checkpoint, kept_checkpoints, told_course, training_settings
from tdaexp.training.kept_state import state_of_checkpoint, state_of_recording
from tdaexp.training.optimisers import decays, learning_rate
from tdaexp.training.settings import FitSettings
from tdaexp.training.trajectory import Trajectory

ONLY = "model.checkpoints: only explaind reads a list of checkpoints; name one model"
KEYS = {one.name for one in fields(FitSettings)}


@dataclass(frozen=True)
class SavedCheckpoints:
    """The checkpoints beside a language model that was trained here (`trainer.fit.keep=all`).

    Each stands for the mean learning rate of the steps since the one before. `key` names the training's settings.
    """

    loaded: LoadedModel
    device: torch.device
    dtype: torch.dtype
    key: str = "trainer.fit"

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        """All that were kept, or those of the named steps; `count` is for recordings."""
        found = self._kept()
        known = [str(one.step) for one in found]
        for step in steps or []:
            if str(step) not in known:
                raise unknown("step", str(step), known, "method.steps")
        return [self._moment(one) for one in found if steps is None or one.step in steps]

    def course(self) -> Course:
        """How it went, by the training's note. Errors (UserError): as `moments`."""
        self._kept()
        told = told_course(self._folder)
        if told is not None:
            return told
        settings = FitSettings(**{key: value for key, value in self._settings().items() if key in KEYS})
        rates = np.array([learning_rate(step, settings) for step in range(settings.steps)])
        decay = decays(self.loaded.model.named_parameters(), settings)
        return Course(rates, settings.optimizer, settings.momentum, decay)

    @property
    def _folder(self) -> Path:
        return Path(str(self.loaded.model.name_or_path))

    def _settings(self) -> dict[str, Any]:
        return training_settings(self._folder)

    def _moment(self, one: Checkpoint) -> Moment:
        identity, optimizer = self._named(one).start_fingerprint(), str(self._settings().get("optimizer", "adamw"))
        state = partial(state_of_checkpoint, one.folder, optimizer)
        return Moment(one.step, one.rate, identity, partial(self._load, one), state)

    def _kept(self) -> list[Checkpoint]:
        folder, settings = self._folder, self._settings()
        kept = kept_checkpoints(folder)
        if not kept and settings.get("keep", "last") != "last":
            length, every = settings["steps"], settings["checkpoint_every"]
            raise UserError(
                f"{folder}: {length} steps of training and a checkpoint every {every} steps leave no checkpoint; set "
                f"{self.key}.checkpoint_every={max(1, length // 5)}, or train for more steps ({self.key}.steps)"
            )
        if not kept:
            raise UserError(
                f"{folder or 'the model'}: no checkpoints beside it, which this method needs; let it be trained here "
                f"(model.pretrained=null), or name the model/ folder of a training with {self.key}.keep=all"
            )
        return kept

    def _named(self, checkpoint: Checkpoint) -> Pretrained:
        loaded, folder = self.loaded, str(checkpoint.folder)
        base, own = base_of(loaded.model), runs_own_code(loaded.model)
        return Pretrained(
            base or folder,
            template=loaded.template,
            max_length=loaded.max_length,
            trust_remote_code=own,
            adapter=folder if base else None,
            merge_adapter=loaded.base is not None and base is None,
            quantised=kind_of(loaded.model),
        )

    def _load(self, checkpoint: Checkpoint) -> nn.Module:
        """A checkpoint's weights, where and in which type the explained model is."""
        return self._named(checkpoint).load(self.device, self.dtype).model


@dataclass(frozen=True)
class RecordedSteps:
    """The steps of a recorded training of `model`; each moment is the middle of the steps that it stands for.

    Its rate is the sum of their learning rates. Places in the batches are those of the problem's training examples;
    `held_out` examples may rank the steps.
    """

    model: nn.Module
    trajectory: Trajectory
    held_out: ExampleList | None = None

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        """At most `count` recorded steps, evenly spaced, or the named ones."""
        recorded = list(self.trajectory.steps)
        for step in steps or []:
            if step not in recorded:
                raise unknown("step", str(step), map(str, recorded), "method.steps")
        if steps is not None:
            return [self._moment([step]) for step in steps]
        if count < 1:
            raise UserError(f"method.moments={count}: must be at least 1")
        return [self._moment(part.tolist()) for part in np.array_split(recorded, min(count, len(recorded)))]

    def _moment(self, part: list[int]) -> Moment:
        middle = part[len(part) // 2]
        rate = sum(self.trajectory.lr(step) for step in part)
        identity = fingerprint(self.trajectory.settings.identity, middle)
        state = partial(state_of_recording, self.trajectory, middle)
        return Moment(middle, rate, identity, partial(self._at, middle), state)

    def course(self) -> Course:
        """How it went; the rate of a recorded step stands for the steps up to the next one, too."""
        recorded = self.trajectory.settings
        rates = np.repeat([self.trajectory.lr(step) for step in self.trajectory.steps], recorded.every)
        return Course(rates[: recorded.total], recorded.optimizer, recorded.momentum, dict(recorded.decay))

    def _at(self, step: int) -> nn.Module:
        """A copy of the model with the weights before a step."""
        there = copy.deepcopy(self.model)
        parameters = self.trajectory.parameters(step)
        with torch.no_grad():
            for name, value in there.named_parameters():
                value.copy_(parameters[name])
        return there


@dataclass(frozen=True)
class ListedCheckpoints:
    """Checkpoints of a language model, each of which would go on by an update as `fit` says where it does not itself.

    `groups` and `query_groups` name what the problem's training examples, from which batches are drawn, and its
    queries belong to, e.g. their languages.
    """

    snapshots: list[Snapshot]
    groups: list[str]
    query_groups: list[str]
    fit: FitSettings

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        """None: what a checkpoint's learning rate stands for is not known. Errors (UserError): always."""
        raise UserError(ONLY)

    def course(self) -> Course:
        """None is known. Errors (UserError): always."""
        raise UserError(ONLY)

    def batch(self, snapshot: Snapshot, seed: int) -> np.ndarray:
        """Places of the batch of one checkpoint [B], a function of (seed, step); each group by its share."""
        return stratified(self.groups, self.fit.batch_size, [seed, snapshot.step], "trainer.fit.batch_size")

    @property
    def identity(self) -> list[Any]:
        """All that decides what the batches and the updates are, beside the examples."""
        snapshots = [one.identity for one in self.snapshots]
        return [snapshots, self.groups, self.query_groups, self.fit.deciding()]
