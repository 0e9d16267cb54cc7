"""Fits the curvature of a model over a data set: settings in, stored factors out.

The factors are those of the loss summed over an example's tokens, with labels drawn from the model. What is computed is
stored under one folder, in phases that modes share (`phases`): a killed fit goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tdaexp.curvature.factors_store import MODES, Factors
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.layers import Layers
from tdaexp.curvature.phases import Phases
from tdaexp.gradients.passes import fitted_gradients
from tdaexp.objectives.base import ExampleList
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown

FISHERS = ("labels", "signs")


@dataclass(frozen=True)
class FactorSettings:
    """How factors are fitted: `mode`, `seed` of what is drawn, `partitions` of the layers, `saves` of the data;
    `fisher`: what they are fitted to, gradients of drawn `labels` or of random `signs`.
    """

    mode: str = "ekfac"
    seed: int = 0
    partitions: int = 1
    saves: int = 4
    fisher: str = "labels"

    def __post_init__(self) -> None:
        """Refuse unknown modes and counts below one."""
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES, "method.mode")
        if self.fisher not in FISHERS:
            raise unknown("fisher", self.fisher, FISHERS, "method.fisher")
        for name in ("partitions", "saves"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name}={getattr(self, name)}: must be at least 1")

    @property
    def sampling(self) -> list[object]:
        """What stored phases depend on; modes share them."""
        return [self.seed, self.partitions, self.saves, self.fisher]


def fisher_note(fisher: str) -> str:
    """What a label says where it is not usual."""
    return "" if fisher == FactorSettings.fisher else fisher


def fit_factors(source: FisherSamples, settings: FactorSettings, *, store: Path) -> Factors:
    """Curvature over the samples' examples; `store` is a folder named after all that it depends on.

    The mode and the damping need not be in the name: modes share what they can. Errors (UserError): NaN or Inf in an
    activation or an output gradient, with layer and example.
    """
    fit = Phases(source, settings.seed, settings.partitions, settings.saves, store)
    with source.ready(), torch.no_grad():
        readers = fit.readers() if settings.mode in ("ekfac", "kfac") else {}
        if readers:
            fit.covariance(readers)
            fit.eigen(readers)
        if settings.mode == "ekfac":
            fit.spectrum("lambda", readers)
        elif settings.mode == "diagonal":
            fit.spectrum("diagonal", readers)
    return Factors(store, source.layers, readers, settings.mode, len(source.ids), source.dtype)


def problem_factors(
    problem: Problem, layers: Layers, settings: FactorSettings, examples: ExampleList | None = None
) -> Factors:
    """Curvature of a problem's model over the examples that it was trained on, or over some of them, from the cache if
    it is there.

    Errors (UserError): as `fit_factors`.
    """
    gradients = fitted_gradients(problem, layers.map)
    own: list[object] = [layers.components.names, *settings.sampling]
    if examples is not None:
        gradients, own = replace(gradients, examples=examples), [*own, examples.fingerprint()]
    store = problem.training_store("factors", *own, by=fit_factors)
    samples = FisherSamples(gradients, layers, problem.compute.tokens_per_batch, settings.fisher)
    return fit_factors(samples, settings, store=store)
