"""What a new adapter is like. Imports nothing heavy, so that configs can be checked fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig

NEW = "new"
"""Value of `model.adapter` for one that is yet to be trained."""
EVERY = "all-linear"


@dataclass(frozen=True)
class Lora:
    """A new low-rank adapter: W x becomes W x + alpha / r · B A x, with A drawn from `seed` and B zero.

    Keys: `r` the rank; `alpha`; `target_modules` names of linear layers as peft takes them, such as [q_proj,v_proj],
    [all-linear] for all but the head; `seed`. There is no dropout: what is explained is the function that was trained.
    """

    r: int = 8
    alpha: float = 16
    target_modules: list[str] = field(default_factory=lambda: [EVERY])
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a rank, a factor or a list of modules that makes no adapter."""
        if self.r < 1:
            raise UserError(f"model.lora.r={self.r}: must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise UserError(f"model.lora.alpha={self.alpha}: must be a positive number")
        if not self.target_modules:
            raise UserError(f"model.lora.target_modules is empty; name linear layers, or [{EVERY}]")
        if EVERY in self.target_modules and len(self.target_modules) > 1:
            raise UserError(f"model.lora.target_modules: {EVERY} stands for all others; name it alone, or not at all")

    def config(self) -> LoraConfig:
        """As peft takes it."""
        from peft import LoraConfig

        names: Any = EVERY if EVERY in self.target_modules else list(self.target_modules)
        alpha: Any = self.alpha  # whole in peft's types, any number in its arithmetic
        return LoraConfig(task_type="CAUSAL_LM", r=self.r, lora_alpha=alpha, target_modules=names, lora_dropout=0.0)
