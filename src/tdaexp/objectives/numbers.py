"""Predicting numbers: any module from inputs [B, ...] to means [B, O], and half the squared error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.objectives.base import Inputs
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.labels import uniforms
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.deferred import send


@dataclass(frozen=True)
class Numbers(Classes):
    """The loss of an example is ½|f - y|², y [O] its target; its label is f plus standard normal noise.

    The noise follows from the seed and the example's id, so that no label need be kept.
    """

    @property
    def gives_probabilities(self) -> bool:
        """No: the outputs are means."""
        return False

    def losses(self, model, inputs: Inputs, loss) -> Tensor:  # type: ignore[no-untyped-def]
        """Half squared errors [B]; a `loss` of logits has no meaning here and is left aside."""
        means = self.outputs(model, inputs)[:, 0]
        wide = accumulation_dtype(means.dtype)
        return 0.5 * (means.to(wide) - inputs.targets[:, 0].to(wide)).square().sum(1)

    def hessian(self, logits: Tensor, directions: Tensor) -> Tensor:
        """The directions themselves."""
        return directions

    def sampled(self, logits: Tensor, inputs: Inputs, seed: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses on drawn numbers; the labels are zeros."""
        means = logits[:, 0]
        noise = torch.special.ndtri(uniforms(inputs.ids, seed, means.shape[1]).clamp(min=1e-300))
        target = means.detach() + send(noise, means.device, means.dtype)
        zeros = torch.zeros(len(means), 1, dtype=torch.int64, device="cpu")
        return 0.5 * (means - target).square().sum(1), zeros
