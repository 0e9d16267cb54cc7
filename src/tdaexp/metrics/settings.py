"""How stores are judged: the keys of the `metric` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdaexp.runtime.errors import UserError, unknown

MOST_RESAMPLES = 1_000_000
STARTS = ("same", "own")
WEIGHTS = ("kept", "renormalised")


@dataclass(frozen=True)
class Retraining:
    """How models are trained again: keys of `metric.retraining`, of all that judges by it.

    `starts`: from the `same` weights in the same batches as the explained model, or each with its `own`: two questions;
    `weights` of what is left of a batch of the same start: `kept`, so that what is left out has weight 0, or
    `renormalised` to their mean; `measurement` of a query.
    """

    starts: list[str] = field(default_factory=lambda: ["same"], metadata={"distinct": True})
    weights: str = "kept"
    measurement: str = "log_likelihood"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for start in self.starts:
            if start not in STARTS:
                raise unknown("start", start, STARTS, "metric.retraining.starts")
        if not self.starts:
            raise UserError("metric.retraining.starts is empty; name same, own, or both")
        if self.weights not in WEIGHTS:
            raise unknown("value", self.weights, WEIGHTS, "metric.retraining.weights")


@dataclass(frozen=True)
class Lds:
    """Linear datamodeling score: keys of `metric.lds`.

    `subsets`: on how many random subsets a model is trained again; `left_out`: the share of the examples that a subset
    lacks; `ceiling`: trainings on all examples with starts of their own, from whose spread follows what a perfect
    foretelling could reach at starts of their own (0: it is not told).
    """

    subsets: int = 100
    left_out: float = 0.05
    ceiling: int = 10

    def __post_init__(self) -> None:
        """Refuse too few subsets to rank, and shares that are none."""
        if self.subsets < 3:
            raise UserError(f"metric.lds.subsets={self.subsets}: a rank correlation needs at least 3")
        if not 0 < self.left_out < 1:
            raise UserError(f"metric.lds.left_out={self.left_out:g}: must be a share between 0 and 1, e.g. 0.05")
        if self.ceiling < 0 or self.ceiling == 1:
            raise UserError(f"metric.lds.ceiling={self.ceiling}: must be at least 2 trainings, or 0 for none")


@dataclass(frozen=True)
class MetricSettings:
    """Keys: `bootstrap` (resamples of the queries behind every interval), `confidence` (of the intervals),
    `folds` (for the accuracy on queries that were not used for selecting), `top_k` (training texts shown per query, and
    the k of recall@k, which is left out where no query has more candidates), `trials` and `queries_per_trial`
    (retrieval is averaged over that many random samples of the queries; null = all queries, once), `reference` (the
    method, by its name or its label in the table, that rank correlations compare with; null = the full gradient),
    `plots` (draw the figures), `seed` (of resamples, trials and folds).

    What is judged beside retrieval, where it is chosen (`metric=[retrieval,lds]`): `lds`; by models that are trained
    again as `retraining` says.
    """

    bootstrap: int = 2000
    confidence: float = 0.95
    folds: int = 5
    top_k: int = 5
    trials: int = 3
    queries_per_trial: int | None = None
    reference: str | None = None
    plots: bool = True
    seed: int = 0
    retraining: Retraining = field(default_factory=Retraining)
    lds: Lds | None = None

    def __post_init__(self) -> None:
        """Refuse values that no metric can work with."""
        for name, least in (("bootstrap", 1), ("folds", 2), ("top_k", 1), ("trials", 1), ("queries_per_trial", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"metric.{name}={getattr(self, name)}: must be at least {least}")
        if self.bootstrap > MOST_RESAMPLES:
            raise UserError(f"metric.bootstrap={self.bootstrap}: must be at most {MOST_RESAMPLES}")
        if not 0 < self.confidence < 1:
            raise UserError(f"metric.confidence={self.confidence:g}: must lie between 0 and 1, for example 0.95")
