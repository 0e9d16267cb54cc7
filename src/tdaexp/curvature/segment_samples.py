"""Passes over examples at several moments of a training: the samples of a segment's mean curvature.

Every example counts once at each moment, with labels drawn from the model as it was then; so sums over the samples are
those of all moments, and their eigenbasis is the one that all moments share.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tdaexp.curvature.fisher import FisherSamples, LayerConsumer
from tdaexp.curvature.layers import Layers
from tdaexp.gradients.passes import Gradients
from tdaexp.history import Moment

log = logging.getLogger(__name__)


class SegmentSamples(FisherSamples):
    """As `FisherSamples`, N examples at each of C moments: example i at moment c has the number c N + i.

    One model is in memory at a time, beside that of `gradients`.
    """

    def __init__(
        self,
        moments: Sequence[Moment],
        gradients: Gradients,
        layers: Layers,
        tokens_per_batch: int,
        fisher: str = "labels",
    ) -> None:
        """Batches of one moment follow those of another. Errors (UserError): an example without loss."""
        super().__init__(gradients, layers, tokens_per_batch, fisher)
        self.moments, self.examples, self._at = list(moments), len(gradients), -1
        places, once, size = range(len(self.moments)), self.batches, self.size
        self.batches = [[place * self.examples + index for index in batch] for place in places for batch in once]
        self.ids = self.ids * len(self.moments)
        self.size = lambda members: size(self._examples(members))

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Models are made ready as they are loaded."""
        return contextlib.nullcontext()

    def run(
        self, members: Sequence[int], names: Sequence[str], labels: Tensor | None, seed: int, consume: LayerConsumer
    ) -> Tensor:
        """As `FisherSamples.run`, of members of one moment."""
        self._load(members[0] // self.examples)
        return super().run(self._examples(members), names, labels, seed + self._at, consume)

    def _examples(self, members: Sequence[int]) -> list[int]:
        return [index % self.examples for index in members]

    def _load(self, place: int) -> None:
        if place == self._at:
            return
        model = self.moments[place].load().eval().requires_grad_(False)
        self.gradients, self._at = replace(self.gradients, model=model), place
        self.gradients.objective.prepare(model)
