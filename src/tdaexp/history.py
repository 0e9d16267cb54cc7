"""What a training left on its way, and how it went: the model at moments of it, with the optimiser's state.

A problem's `history` tells; who has some are `training/history.py` (recordings, checkpoints) and somebody's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class OptimizerState:
    """AdamW's running averages about a moment of a training, after `updates` updates; float32 tensors on the CPU.

    `second(NAME)` is v̂ and `first(NAME)` m̂ of one parameter, both bias-corrected (the raw averages are
    v̂ (1 − β₂^updates) and m̂ (1 − β₁^updates)); errors (UserError): that parameter was not trained. `first` is None
    where none was kept beside v̂. `identity` is that of all of it.
    """

    updates: int
    betas: tuple[float, float]
    eps: float
    second: Callable[[str], Tensor]
    first: Callable[[str], Tensor] | None = None
    identity: str = ""
    eps_root: float = 0.0

    def divisor(self, second: Tensor) -> Tensor:
        """√(v̂ + `eps_root`) + `eps`, what an update divides by, of some of v̂."""
        return (second + self.eps_root).sqrt() + self.eps


def no_state() -> OptimizerState:
    """Errors (UserError): always."""
    raise UserError("this model's training left no state of its optimiser; train it with trainer.fit.keep=state")


@dataclass(frozen=True)
class Moment:
    """The model at a step of its training, and the learning `rate` that it stands for; `load` gives its weights.

    `identity` is that of the weights. `state` gives what AdamW had then; errors (UserError): nothing was kept of it.
    """

    step: int
    rate: float
    identity: str
    load: Callable[[], nn.Module]
    state: Callable[[], OptimizerState] = no_state


@dataclass(frozen=True)
class Course:
    """How a training went: the learning `rates` of its steps [steps], by which `optimizer` (`adamw`, or `sgd` with
    `momentum`), and the weight `decay` by parameter name (adamw: apart from the gradient; sgd: in it).
    """

    rates: np.ndarray
    optimizer: str
    momentum: float
    decay: dict[str, float]


class History(Protocol):
    """What a training left on its way."""

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        """The model at the named steps, or at all that were kept; of a recording at `count` of them, evenly spaced.

        Errors (UserError): nothing was kept, or not at that step.
        """

    def course(self) -> Course:
        """How it went. Errors (UserError): that is not known."""
