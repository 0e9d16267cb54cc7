"""How a model is trained: the keys under `trainer.fit`. Imports nothing heavy, so that configs can be checked fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tdaexp.runtime.errors import UserError, unknown

KEEP = ("last", "all", "state")
CHOICES = {
    "keep": KEEP,
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "linear", "constant"),
    "decay": ("matrices", "all"),
    "batches": ("stream", "epochs"),
}
LEAST = {"steps": 0, "batch_size": 1, "warmup": 0, "weight_decay": 0, "checkpoint_every": 1, "clip": 0}
LEAST |= {"momentum": 0, "eps": 0, "eps_root": 0, "record": 0, "evaluate_every": 1}
LATER: tuple[str, ...] = ("optimizer", "betas", "eps", "momentum", "schedule", "decay", "batches", "record")
LATER += ("evaluate_every", "eps_root")
"""Keys that came later: at their defaults they leave the identity of a training as it was."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training run.

    Keys: `steps` optimiser steps, 0 = keep the initial weights; `batch_size` in examples; `lr` peak learning rate;
    `warmup` steps of linear rise, before the `schedule` (`cosine` or `linear` to zero, or `constant`); `weight_decay`
    and its reach `decay` (`matrices` or `all` parameters); `checkpoint_every` steps, what a killed run loses at most;
    `keep` the `last` or `all` checkpoints as models that can be loaded, or all with the optimiser's `state`; `clip` the
    gradient's norm, 0 = never; `optimizer` `adamw` (`betas`, `eps`, and inside the root `eps_root`) or `sgd`
    (`momentum`, with the weight decay in the gradient); `batches` cut an endless `stream` of epochs, or each of the
    `epochs` by itself, the last batch smaller; `record` the trajectory at every so many steps, 0 = not;
    `evaluate_every` steps, train and test accuracy of a task model.
    """

    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    checkpoint_every: int = 100
    keep: str = "last"
    clip: float = 1.0
    optimizer: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    eps_root: float = 0.0
    momentum: float = 0.0
    schedule: str = "cosine"
    decay: str = "matrices"
    batches: str = "stream"
    record: int = 0
    evaluate_every: int = 10

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise unknown("value", getattr(self, key), choices, f"trainer.fit.{key}")
        for key, least in LEAST.items():
            if not getattr(self, key) >= least:  # NaN fails too
                raise UserError(f"trainer.fit.{key}={getattr(self, key)}: must be at least {least}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"trainer.fit.lr={self.lr}: must be a positive number")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"trainer.fit.betas={self.betas}: must be two numbers from 0 to below 1")
        if self.keep == "state" and self.optimizer != "adamw":
            raise UserError(f"trainer.fit.keep=state: keeps AdamW's state, not that of {self.optimizer}; use keep=all")
        if not self.momentum < 1:
            raise UserError(f"trainer.fit.momentum={self.momentum}: must be below 1")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the weights; how often they are saved or looked at does not."""
        later = asdict(FitSettings())
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in ("checkpoint_every", "keep", "record", "evaluate_every")
            and not (key in LATER and value == later[key])
        }
