"""EK-FAC's factors of M = s ∘ G ∘ s, the curvature that AdamW's updates see, with s a number for each weight.

M is the second moment of the scaled gradients s ∘ G_i. Scaling each weight leaves no Kronecker structure of inputs and
output gradients, so the bases come from the scaled gradients of whole examples, as in Shampoo (Gupta et al. 2018):

    A = E[(s ∘ G_i)ᵀ (s ∘ G_i)]     S = E[(s ∘ G_i) (s ∘ G_i)ᵀ]     Λ = E[(Q_Sᵀ (s ∘ G_i) Q_A)²].

Of a matrix with one row or one column that is exact. Cost: each example's gradient is formed twice, 2 O I (O + I)
multiply-adds each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tdaexp.curvature.factors_store import Factors, HeldBases
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.fit import FactorSettings
from tdaexp.curvature.lambdas import CHUNK_BYTES, form
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.phases import Phase, Phases, Sums
from tdaexp.gradients.factors import LinearFactors
from tdaexp.runtime.rehearsal import sampled

Scale = Callable[[str], Tensor]
"""Layer name to s [O, I], the bias's column last."""


def fit_scaled(source: FisherSamples, scale: Scale, settings: FactorSettings, *, store: Path) -> Factors:
    """Factors of M over the samples' examples; `store` and errors as for `fit_factors`."""
    fit = ScaledPhases(source, scale, settings, store)
    with source.ready(), torch.no_grad():
        readers = fit.readers()
        fit.covariance(readers)
        fit.eigen(readers)
        fit.spectrum("lambda", readers)
    return Factors(store, source.layers, readers, "ekfac", len(source.ids), source.dtype)


class ScaledPhases(Phases):
    """The phases of such a fit."""

    def __init__(self, source: FisherSamples, scale: Scale, settings: FactorSettings, store: Path) -> None:
        super().__init__(source, settings.seed, settings.partitions, settings.saves, store)
        self.scale = scale

    def readers(self) -> dict[str, str]:
        """No layer shares its A: the scales of two matrices differ."""
        return {layer.name: layer.name for layer in self.source.layers}

    def covariance(self, readers: dict[str, str]) -> None:
        """Sums of GᵀG and G Gᵀ over scaled gradients, and their number."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.source.layers:
            shapes |= {f"A.{layer.name}": (layer.inputs, layer.inputs), f"n.{layer.name}": ()}
            shapes[f"S.{layer.name}"] = (layer.outputs, layer.outputs)

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], _: Tensor | None) -> None:
            for layer, one in zip(layers, factors, strict=True):
                for gradients in self._scaled(layer, one):
                    rows, columns = gradients.flatten(0, 1), gradients.transpose(0, 1).flatten(1)
                    sums[f"A.{layer.name}"].addmm_(rows.T, rows)
                    sums[f"S.{layer.name}"].addmm_(columns, columns.T)
                sums[f"n.{layer.name}"] += len(one.deltas)

        self.run("covariance", "covariances", Phase(shapes, add))

    def spectrum(self, phase: str, readers: dict[str, str]) -> None:
        """Sums of squared scaled gradients in the eigenbases."""
        bases = HeldBases(self.store, readers, self.source.dtype)
        shapes: dict[str, tuple[int, ...]] = {
            f"L.{layer.name}": (layer.outputs, layer.inputs) for layer in self.source.layers
        }

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], _: Tensor | None) -> None:
            for layer, one in zip(layers, factors, strict=True):
                q_in, q_out = bases.of(layer.name, one.deltas.device)
                for gradients in self._scaled(layer, one):
                    sums[f"L.{layer.name}"] += (q_out.T @ gradients @ q_in).square().sum(0)

        self.run(phase, "Λ", Phase(shapes, add, enter=bases.enter))

    def _scaled(self, layer: Layer, factors: LinearFactors) -> Iterator[Tensor]:
        """Scaled gradients [b, O, I] of a batch, some examples at a time."""
        inputs, deltas = factors.inputs.to(self.source.dtype), factors.deltas.to(self.source.dtype)
        scale = self.scale(layer.name).to(deltas)
        room = CHUNK_BYTES.get(deltas.device.type, CHUNK_BYTES["cpu"])
        examples, step = len(deltas), max(1, room // (deltas.element_size() * layer.size))
        for start in sampled(range(0, examples, step), lambda start: min(step, examples - start), lambda _: 1):
            part = slice(start, start + step)
            yield scale * form(inputs[part], deltas[part], factors.bias)
