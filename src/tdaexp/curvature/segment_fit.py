"""A segment of a training with its curvature: EK-FAC's factors over all of its moments, ready to be unrolled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import Layers
from tdaexp.curvature.scaled import fit_scaled
from tdaexp.curvature.segment_samples import SegmentSamples
from tdaexp.curvature.unrolled import Unrolled, adam_scale
from tdaexp.gradients.passes import fitted_gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.history import Course, OptimizerState
from tdaexp.models.components import parameters_of
from tdaexp.problem import Problem
from tdaexp.training.segments import Segment


@dataclass(frozen=True, eq=False)
class FittedSegment:
    """A `segment` of the training of the `problem`'s model, and its curvature over the `layers`.

    `positions`: how many of them an example's loss is the mean of in a training step, on average; `states`: AdamW's at
    the segment's moments, empty for SGD.
    """

    segment: Segment
    problem: Problem
    layers: Layers
    course: Course
    positions: float
    states: tuple[OptimizerState, ...]
    settings: FactorSettings

    @property
    def identity(self) -> list[object]:
        """All that its curvature and its unrolling depend on, beside the examples that curvature is averaged over."""
        states = [[one.identity, one.eps] for one in self.states]
        moments = [one.identity for one in self.segment.moments]
        decays = [self._decay(name) for name in self.layers.names]
        return [self.problem.identity, moments, states, self._rates, decays, self.positions, self.settings]

    def fit(self) -> Factors:
        """Its factors: fitted now, or read from the cache."""
        return self._factors

    @functools.cached_property
    def _factors(self) -> Factors:
        moments, problem, settings = self.segment.moments, self.problem, self.settings
        gradients = fitted_gradients(problem, self.layers.map)
        samples = SegmentSamples(moments, gradients, self.layers, problem.compute.tokens_per_batch, settings.fisher)
        fitted = [self.layers.components.names, *settings.sampling]
        by = fit_scaled if self.states else fit_factors
        states = [[one.identity, one.eps] for one in self.states]
        store = problem.training_store(
            "segment-factors", *fitted, [one.identity for one in moments], states, by=[by, SegmentSamples]
        )
        if self.states:
            return fit_scaled(samples, self._scale, settings, store=store)
        return fit_factors(samples, settings, store=store)

    def unrolled(self, name: str) -> Unrolled:
        """One layer over the segment."""
        scale = self._scale(name) if self.states else None
        return Unrolled(self._factors[name], self._rates, self._decay(name), self.positions, scale)

    @property
    def _rates(self) -> float:
        """ηK; with momentum μ each gradient counts 1 / (1 − μ) times in the end."""
        return self.segment.rates / (1 - self.course.momentum)

    def _decay(self, name: str) -> float:
        """λ of a layer, the mean over its entries: a bias may have another than its matrix."""
        (component,), model = self.layers.map.select([name]).components, self.problem.model
        sizes = {one: model.get_parameter(one).numel() for one in parameters_of(model, component)}
        return sum(size * self.course.decay[one] for one, size in sizes.items()) / sum(sizes.values())

    @functools.cached_property
    def _scale(self) -> Callable[[str], Tensor]:
        """Of a layer s [O, I], from the mean of v̂ over the segment's moments; read once."""
        return functools.cache(self._read_scale)

    def _read_scale(self, name: str) -> Tensor:
        layer, space = self.layers[name], VectorSpace(self.problem.model, self.layers.map.select([name]))
        means = {one: torch.stack([state.second(one) for state in self.states]).mean(0) for one in space.names}
        second = space.vectors({one: value[None] for one, value in means.items()})
        state = self.states[0]
        return adam_scale(second.view(layer.outputs, layer.inputs), state.eps, state.eps_root)
