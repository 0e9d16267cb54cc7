"""How stores are judged: the keys of the `metric` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdaexp.metrics.judging_settings import (
    BY_RETRAINING,
    Brittleness,
    Duplicates,
    Keeping,
    Lds,
    LeaveOneOut,
    Mislabelled,
    Removal,
    Retraining,
    TailPatch,
)
from tdaexp.runtime.errors import UserError

MOST_RESAMPLES = 1_000_000


@dataclass(frozen=True)
class MetricSettings:
    """Keys: `bootstrap` (resamples of the queries behind every interval), `confidence` (of the intervals),
    `folds` (for the accuracy on queries that were not used for selecting), `top_k` (training texts shown per query, and
    the k of recall@k, which is left out where no query has more candidates), `trials` and `queries_per_trial`
    (retrieval is averaged over that many random samples of the queries; null = all queries, once), `reference` (the
    method, by its name or its label in the table, that rank correlations compare with; null = the full gradient),
    `plots` (draw the figures), `seed` (of resamples, trials and folds).

    What is judged beside retrieval, where it is chosen (`metric=[retrieval,lds]`): `lds`, `leave_one_out`, `removal`,
    `brittleness` and `keeping`, by models that are trained again as `retraining` says; `tail_patch`, by one more step
    of the model; `mislabelled` and `duplicates`, by what is known of the training rows.
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
    leave_one_out: LeaveOneOut | None = None
    removal: Removal | None = None
    brittleness: Brittleness | None = None
    keeping: Keeping | None = None
    tail_patch: TailPatch | None = None
    mislabelled: Mislabelled | None = None
    duplicates: Duplicates | None = None

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


def trains_again(settings: MetricSettings) -> bool:
    """Whether a chosen metric judges by models that are trained again."""
    return any(getattr(settings, name) is not None for name in BY_RETRAINING)
