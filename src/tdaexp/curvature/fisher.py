"""Passes over examples whose gradients have the Gauss-Newton matrix as their second moment.

Either on labels drawn from the model's own distribution, by the objective (`objectives.base`), as in the papers; or
with random signs through the root of the loss Hessian (`hessian_root`): the same mean with less spread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.hessian_root import random_signs, root_of
from tdaexp.curvature.layers import Layers
from tdaexp.gradients.capture import capture
from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.passes import Gradients
from tdaexp.models.components import Component
from tdaexp.objectives.base import Inputs
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.deferred import send
from tdaexp.runtime.rehearsal import padded

LayerConsumer = Callable[[list[str], list[LinearFactors], Tensor | None], None]
"""Receives layers that read one input, their factors, and which positions are real: numbers into [B T], None for all.
"""


class FisherSamples:
    """Examples in batches, run with drawn labels or with signs (`fisher`).

    `gradients` are with respect to `layers.map`.
    `ids` [N] name the examples; `batches` list example numbers, `size` has their positions; `label_width` is the most
    labels that an example has; `dtype` is what sums are formed in. Positions behind an example's last predicting one
    count neither for A nor for S: nothing there reaches the loss.
    """

    def __init__(
        self, gradients: Gradients, layers: Layers, tokens_per_batch: int = 4096, fisher: str = "labels"
    ) -> None:
        """Cut the examples into batches. Errors (UserError): an example without loss; as of `root_of`, for signs."""
        gradients.check(range(len(gradients)), "training")
        self.root = root_of(gradients.objective) if fisher == "signs" else None
        self.gradients, self.parts, self.layers = gradients, layers, layers.layers
        self.ids, self.dtype = gradients.ids, gradients.dtype
        self.batches = gradients.batches(tokens_per_batch)
        self.size = padded(gradients.lengths)
        self.label_width = gradients.objective.label_width(gradients.examples)

    def ready(self) -> AbstractContextManager[None]:
        """Context in which batches may be run."""
        return self.gradients.ready()

    def run(
        self, members: Sequence[int], names: Sequence[str], labels: Tensor | None, seed: int, consume: LayerConsumer
    ) -> Tensor:
        """One forward and backward pass of the loss (sum over positions) on drawn labels, or with signs.

        Draws labels with `seed` unless `labels` [B, L] are given, and returns them, wherever they are (-1 with signs,
        which the seed gives again); hands the named layers to `consume`.
        """
        model, objective, device = self.gradients.model, self.gradients.objective, self.gradients.device
        inputs = objective.batch(self.gradients.examples, members, "sum")
        at_loss, reached = (_real_positions(mask, device) for mask in objective.real(model, inputs))
        inputs = inputs.to(device)
        drawn: list[Tensor] = []

        def losses() -> Tensor:
            logits = objective.outputs(model, inputs)
            sampled = (
                objective.sampled(logits, inputs, seed, labels)
                if self.root is None
                else self._signed(logits, inputs, seed)
            )
            drawn.append(sampled[1])
            return sampled[0]

        def receive(components: list[Component], factors: list[Factors]) -> None:
            arrived = [component.name for component in components]
            linear = [one for one in factors if isinstance(one, LinearFactors)]
            consume(arrived, linear, at_loss if self.parts[arrived[0]].at_loss else reached)

        capture(model, self.parts.map.select(names), len(members), losses, receive)
        return drawn[0]

    def _signed(self, logits: Tensor, inputs: Inputs, seed: int) -> tuple[Tensor, Tensor]:
        """Losses [B], linear in the logits, whose gradients by these are R times random signs; and no labels [B, L]."""
        assert self.root is not None
        wide = logits.to(accumulation_dtype(logits.dtype))
        signs = send(random_signs(inputs.ids, seed, logits.shape[1:]), logits.device).to(wide.dtype)
        real = (inputs.weights > 0).to(wide.dtype)  # padding carries no loss
        losses = ((wide * self.root(wide.detach(), signs)).sum(-1) * real).sum(1)
        return losses, torch.full_like(inputs.targets, -1)


def _real_positions(mask: np.ndarray | None, device: torch.device) -> Tensor | None:
    """Numbers of a mask's [B, T] positions; None where all are real."""
    return None if mask is None else send(np.flatnonzero(mask), device)
