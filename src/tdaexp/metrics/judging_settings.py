"""What stores are judged by beside retrieval: the keys of each choice of the `metric` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdaexp.runtime.errors import UserError, unknown

STARTS = ("same", "own")
WEIGHTS = ("kept", "renormalised")
BY_RETRAINING = ("lds", "leave_one_out", "removal", "brittleness", "keeping")
"""Metrics that train models again."""


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
        _check_share("lds.left_out", self.left_out)
        if self.ceiling < 0 or self.ceiling == 1:
            raise UserError(f"metric.lds.ceiling={self.ceiling}: must be at least 2 trainings, or 0 for none")


@dataclass(frozen=True)
class LeaveOneOut:
    """Models trained without one example: key of `metric.leave_one_out`.

    `examples`: how many examples, drawn at random, are left out, one training each.
    """

    examples: int = 50

    def __post_init__(self) -> None:
        """Refuse too few to rank."""
        if self.examples < 3:
            raise UserError(f"metric.leave_one_out.examples={self.examples}: a rank correlation needs at least 3")


@dataclass(frozen=True)
class Removal:
    """What is gone with a method's best rows: keys of `metric.removal`.

    `share` of the training rows that is left out; `queries` of each set, drawn at random, one training for each of them
    and each method; `random` removals of the same size to compare with, one training each.
    """

    share: float = 0.01
    queries: int = 10
    random: int = 10

    def __post_init__(self) -> None:
        """Refuse shares that are none, and too few random removals to compare with each other."""
        _check_share("removal.share", self.share)
        _check_least(self, "removal", queries=1, random=2)


@dataclass(frozen=True)
class Brittleness:
    """How few of a method's best rows carry an answer: keys of `metric.brittleness`.

    `shares` of the training rows that are left out, from the smallest on until the answer flips, one training each;
    `queries` of each set, drawn at random of those that the model answers rightly; `random` orders of all rows to
    compare with.
    """

    shares: list[float] = field(default_factory=lambda: [0.005, 0.01, 0.02, 0.05])
    queries: int = 10
    random: int = 3

    def __post_init__(self) -> None:
        """Refuse shares that are none or do not rise."""
        for share in self.shares:
            _check_share("brittleness.shares", share)
        if not self.shares or sorted(set(self.shares)) != list(self.shares):
            raise UserError(f"metric.brittleness.shares={self.shares}: must be shares that rise, e.g. [0.01,0.05]")
        _check_least(self, "brittleness", queries=1, random=1)


@dataclass(frozen=True)
class Keeping:
    """What a method's best rows teach alone: keys of `metric.keeping`.

    `share` of the training rows that is kept, by the mean score over one half of the queries; `repeats` trainings on
    them, which differ where starts are their own; `random` sets of as many rows to compare with, one training each.
    """

    share: float = 0.5
    repeats: int = 3
    random: int = 5

    def __post_init__(self) -> None:
        """Refuse shares that are none, no training, and too few random sets to compare with."""
        _check_share("keeping.share", self.share)
        _check_least(self, "keeping", repeats=1, random=2)


@dataclass(frozen=True)
class TailPatch:
    """One more step on a proponent: keys of `metric.tail_patch`.

    `rate` of the step; `top_k`: on how many of a query's best rows, one at a time; `queries` of each set, drawn at
    random; `random` rows to compare with.
    """

    rate: float = 1e-3
    top_k: int = 5
    queries: int = 20
    random: int = 20

    def __post_init__(self) -> None:
        """Refuse a rate that is none, and counts below one."""
        if not 0 < self.rate < float("inf"):
            raise UserError(f"metric.tail_patch.rate={self.rate:g}: must be a positive number, e.g. 1e-3")
        _check_least(self, "tail_patch", top_k=1, queries=1, random=1)


@dataclass(frozen=True)
class Mislabelled:
    """Faulty rows found by self-influence: key of `metric.mislabelled`.

    `looked_at`: the share of the rows that somebody looks at, from the top: how many of the faulty ones are among them?
    """

    looked_at: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share("mislabelled.looked_at", self.looked_at)


@dataclass(frozen=True)
class Duplicates:
    """Rows that stand twice: key of `metric.duplicates`.

    `pairs`: at most so many pairs of a row and its repetition, drawn at random, and as many of other rows.
    """

    pairs: int = 200

    def __post_init__(self) -> None:
        """Refuse no pair."""
        _check_least(self, "duplicates", pairs=1)


def _check_share(key: str, value: float) -> None:
    if not 0 < value < 1:
        raise UserError(f"metric.{key}={value:g}: must be a share between 0 and 1, e.g. 0.05")


def _check_least(keys: object, name: str, **least: int) -> None:
    for key, lowest in least.items():
        value = getattr(keys, key)
        if value < lowest:
            raise UserError(f"metric.{name}.{key}={value}: must be at least {lowest}")
