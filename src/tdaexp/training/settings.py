"""How a model is trained: the keys under `trainer.fit`. Imports nothing heavy, so that configs can be checked fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tdaexp.runtime.errors import UserError, unknown

KEEP = ("last", "all")
LEAST = {"steps": 0, "batch_size": 1, "warmup": 0, "weight_decay": 0, "checkpoint_every": 1, "clip": 0}


@dataclass(frozen=True)
class FitSettings:
    """Settings of a training run.

    Keys: `steps` optimiser steps, 0 = keep the initial weights; `batch_size` in examples; `lr` peak learning
    rate of AdamW; `warmup` steps of linear rise, before a cosine decay to zero; `weight_decay` of matrices
    (vectors have none); `checkpoint_every` steps, what a killed run loses at most; `keep` `last` or `all`
    checkpoints as models that can be loaded; `clip` the gradient's norm, 0 = never.
    """

    steps: int = 400
    batch_size: int = 32
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    checkpoint_every: int = 100
    keep: str = "last"
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.keep not in KEEP:
            raise unknown("value", self.keep, KEEP, "trainer.fit.keep")
        for key, least in LEAST.items():
            if not getattr(self, key) >= least:  # NaN fails too
                raise UserError(f"trainer.fit.{key}={getattr(self, key)}: must be at least {least}")
        if not 0 < self.lr < math.inf:
            raise UserError(f"trainer.fit.lr={self.lr}: must be a positive number")

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the weights; how often they are saved does not."""
        return {key: value for key, value in asdict(self).items() if key not in ("checkpoint_every", "keep")}
