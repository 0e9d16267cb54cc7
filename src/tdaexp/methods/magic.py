"""MAGIC: exact metagradients of a training, by going back over each of its steps.

Source: Ilyas and Engstrom 2025; the recursion is in `pathkernel.adjoint`. With θ_T the end of the training,

    s(z, q) = ∂ m(q; θ_T(w)) / ∂ w_z      at w = 1

Fills query, train and component; additive over both. A score is the derivative of the query's measurement, at the end
of the training, by the training example's weight in it: the weight multiplies the example's loss in every batch that
holds it, and all else stays, the batches' sizes too. So minus a sum of scores foretells, to first order, what the
measurement changes by where these examples get weight 0 from the same start in the same batches. Sign: positive = the
example supports the query.

Cost: of each query one Hessian product a step, about two trainings; beside that, of each group of queries, two passes
over the batches (the training's states, and the examples' gradients), and once the training for checkpoints and two
for each trial. Nothing grows with the number of training examples but the scores.

Scale: nats of m per unit of the example's weight. Limits: exact as a derivative, not as a prediction: where the
training is not smooth in its weights, leaving an example out does something else, and the trials and the growth along
the way tell it. The model must be trained here, without dropout.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.objectives.measurements import sources
from tdaexp.paths.linearity import LEFT_OUT, Trial, tried
from tdaexp.paths.metagradient import Found, Metagradients
from tdaexp.paths.walk import walk_of
from tdaexp.problem import Problem
from tdaexp.runtime.device import deterministic
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rows import Rows
from tdaexp.selection.parts import check_choices, choice_notes, with_notes

log = logging.getLogger(__name__)


@dataclass
class Magic(Method):
    """Keys: `measurement` of a query and its `reduction` over tokens (`mean`, `sum`); `at_once` queries that go back
    over the training together; `memory_gb` for the training's states, the steps between them being made again from
    checkpoints on the disk; `trials`, pairs of real trainings that the scores are compared with (`paths.linearity`),
    0 = none.
    """

    measurement: str = "log_likelihood"
    reduction: str = "mean"
    at_once: int = 16
    memory_gb: float = 1.0
    trials: int = 1

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        check_choices(None, self.measurement, self.reduction)
        for key, least in (("at_once", 1), ("trials", 0)):
            if getattr(self, key) < least:
                raise UserError(f"method.{key}={getattr(self, key)}: must be at least {least}")
        if not self.memory_gb > 0:
            raise UserError(f"method.memory_gb={self.memory_gb:g}: must be above 0; try method.memory_gb=1")

    @property
    def label(self) -> str:
        """Name, and what is not usual about the measurement."""
        return with_notes(self.name, choice_notes(None, None, self.measurement, self.reduction))

    @property
    def linear(self) -> bool:
        """A derivative of the query's measurement."""
        return True

    @property
    def of_itself(self) -> Method | None:
        """The same, of the loss: a way back over the training for every example."""
        return replace(self, measurement="log_likelihood", trials=0)

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Metagradients of the problem's pairs; how smooth the training is as attributes.

        Errors (UserError): as of `paths.walk` and `paths.metagradient`.
        """
        walk = walk_of(problem)
        decided = (walk.identity, str(walk.start.dtype))
        folder = problem.training_store("training", *decided, by=Magic)
        told = (*decided, self.measurement, *sources(self.measurement), self.reduction)
        with deterministic(problem.compute.device):
            work = Metagradients(
                problem, walk, folder, measurement=self.measurement, reduction=self.reduction,
                at_once=self.at_once, memory_gb=self.memory_gb,
            )  # fmt: skip
            found = work.found(problem.store("metagradients", *told, work.at_once, by=Magic))
            trial = None
            if self.trials:
                where = problem.store("trials", *told, self.trials, problem.seed, by=Magic)
                trial = tried(work, found.scores.sum(2), where, self.trials, problem.seed)
        answer = problem.label(_of_pairs(found.scores, problem.pairs), work.components)
        return answer.assign(growth=("query", _growth(found))).assign_attrs(_told(found, trial, work.drift))


def _of_pairs(scores: np.ndarray, pairs: np.ndarray) -> Rows:
    """Scores [Q, N, K] as those of the pairs [Q, C, K]."""

    def some(rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = scores[rows[:, None], pairs[rows]]
        return found

    return Rows((*pairs.shape, scores.shape[2]), scores.dtype, some)


def _growth(found: Found) -> np.ndarray:
    """By how much each query's adjoint grew at most on its way back [Q], over its norm at the end of the training."""
    end = found.norms[:, -1]
    growth: np.ndarray = np.divide(found.norms.max(1), end, out=np.ones(len(end)), where=end > 0)
    return growth


def _told(found: Found, trial: Trial | None, drift: float) -> dict[str, float]:
    """What is to be said of the training's smoothness."""
    told = {"adjoint_growth": float(np.median(_growth(found))), "replay_error": drift}
    log.info("metagradients: the adjoint grew %.3g times on its way back (median)", told["adjoint_growth"])
    if trial is None:
        return told
    told |= {"linear_error": trial.error, "small_error": trial.small_error, "left_out": LEFT_OUT}
    log.info(
        "metagradients: without %g %% of the examples the measurements moved as foretold but for %.2g of it, where "
        "these count a tenth less but for %.2g",
        100 * LEFT_OUT, trial.error, trial.small_error,
    )  # fmt: skip
    return told
