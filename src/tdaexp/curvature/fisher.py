"""Passes over examples on labels drawn from the model's own distribution: the samples that make factors the Fisher's.

That is what makes the factors those of the Gauss-Newton matrix. The objective draws the labels (`objectives.base`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.layers import Layers
from tdaexp.gradients.capture import capture
from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.passes import Gradients
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import send
from tdaexp.runtime.rehearsal import padded

LayerConsumer = Callable[[list[str], list[LinearFactors], Tensor | None], None]
"""Receives layers that read one input, their factors, and which positions are real: numbers into [B T], None for all.
"""


class FisherSamples:
    """Examples in batches, run with drawn labels; `gradients` are with respect to `layers.map`.

    `ids` [N] name the examples; `batches` list example numbers, `size` has their positions; `label_width` is the most
    labels that an example has; `dtype` is what sums are formed in. Positions behind an example's last predicting one
    count neither for A nor for S: nothing there reaches the loss.
    """

    def __init__(self, gradients: Gradients, layers: Layers, tokens_per_batch: int = 4096) -> None:
        """Cut the examples into batches. Errors (UserError): an example without loss."""
        gradients.check(range(len(gradients)), "training")
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
        """One forward and backward pass of the loss (sum over positions) on drawn labels.

        Draws them with `seed` unless `labels` [B, L] are given, and returns them, wherever they are; hands the named
        layers to `consume`.
        """
        model, objective, device = self.gradients.model, self.gradients.objective, self.gradients.device
        inputs = objective.batch(self.gradients.examples, members, "sum")
        at_loss, reached = (_real_positions(mask, device) for mask in objective.real(model, inputs))
        inputs = inputs.to(device)
        drawn: list[Tensor] = []

        def losses() -> Tensor:
            values, found = objective.sampled(objective.outputs(model, inputs), inputs, seed, labels)
            drawn.append(found)
            return values

        def receive(components: list[Component], factors: list[Factors]) -> None:
            arrived = [component.name for component in components]
            linear = [one for one in factors if isinstance(one, LinearFactors)]
            consume(arrived, linear, at_loss if self.parts[arrived[0]].at_loss else reached)

        capture(model, self.parts.map.select(names), len(members), losses, receive)
        return drawn[0]


def _real_positions(mask: np.ndarray | None, device: torch.device) -> Tensor | None:
    """Numbers of a mask's [B, T] positions; None where all are real."""
    return None if mask is None else send(np.flatnonzero(mask), device)
