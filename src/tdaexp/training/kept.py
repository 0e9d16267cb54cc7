"""The checkpoints that a training kept (`trainer.fit.keep=all`), with the learning rate that led to each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.history import Course
from tdaexp.runtime.errors import UserError
from tdaexp.training.optimisers import learning_rate_factor

STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A model in hub format after `step` steps; `rate` is the mean learning rate of the steps since the one before."""

    step: int
    rate: float
    folder: Path


def kept_checkpoints(model: Path) -> list[Checkpoint]:
    """The checkpoints beside a trained model's folder, in order of steps; none where the training kept none.

    Errors (UserError): the training's own note is missing or cannot be read.
    """
    found = [(int(match[1]), path) for path in (model.parent / "checkpoints").glob("*") if (match := _step(path))]
    if not found:
        return []
    note = model / "training.json"
    told = told_course(model)
    if told is not None:
        return _by_rates(sorted(found), told.rates)
    try:
        settings = _settings(note)
        peak, steps, warmup = float(settings["lr"]), int(settings["steps"]), int(settings["warmup"])
        schedule = str(settings.get("schedule", "cosine"))  # older notes do not name it
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{note}: not readable ({error}); delete {model.parent} and run again") from error
    checkpoints, before = [], 0
    for step, folder in sorted(found):
        rates = [
            learning_rate_factor(own, steps=steps, warmup=warmup, schedule=schedule) for own in range(before, step)
        ]
        checkpoints.append(Checkpoint(step, peak * float(np.mean(rates)), folder))
        before = step
    return checkpoints


def told_course(model: Path) -> Course | None:
    """How a training in a loop of somebody's own went, by its note; None where the training was one of ours."""
    try:
        found = json.loads((model / "training.json").read_text(encoding="utf-8"))["course"]
        decay = {str(name): float(value) for name, value in found["decay"].items()}
        return Course(np.array(found["rates"]), found["settings"]["optimizer"], float(found["momentum"]), decay)
    except (OSError, ValueError, KeyError):
        return None


def _by_rates(found: list[tuple[int, Path]], rates: np.ndarray) -> list[Checkpoint]:
    """The checkpoints after these steps, with the mean of the rates of the steps since the one before."""
    starts = [0, *(step for step, _ in found)]
    return [
        Checkpoint(step, float(np.mean(rates[start:step])), folder)
        for start, (step, folder) in zip(starts, found, strict=False)
    ]


def training_settings(model: Path) -> dict[str, Any]:
    """The settings of the training that a model's folder came from; empty where it has no readable note."""
    try:
        return _settings(model / "training.json")
    except (OSError, ValueError, KeyError):
        return {}


def _settings(note: Path) -> dict[str, Any]:
    return dict(json.loads(note.read_text(encoding="utf-8"))["settings"])


def _step(path: Path) -> re.Match[str] | None:
    return STEP.fullmatch(path.name)
