"""What runs differ in: the keys of their configurations that are axes of a dashboard, and the metrics on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdaexp.report.mirrored import Mirrored

CHOICE = "choice."
COST = "cost/seconds"
IN_SAMPLE, HELD_OUT = "accuracy", "heldout_accuracy"
CONTROLS = ("bm25_accuracy", "minus_bm25")
"""Metrics with bounds that are about a control, not about the method alone."""
WATCHING = ("logger", "cache_dir", "resume", "plan", "git_commit")
BOUNDS = ("_low", "_high")


@dataclass(frozen=True)
class Key:
    """A key in which runs differ: its `path` in the configuration (`choice.method`, `budget`, `method.damping`), its
    value in each run (None: the run has none), and the `name` that a plot gives it.
    """

    path: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The path; of a choice, its group."""
        return self.path.removeprefix(CHOICE)

    @property
    def numeric(self) -> bool:
        """Whether it can be an axis of numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self._known)

    @property
    def everywhere(self) -> bool:
        """Whether every run has a value."""
        return len(self._known) == len(self.values)

    @property
    def repeats(self) -> bool:
        """Whether its runs are repetitions of each other: a seed."""
        return self.path.rpartition(".")[2] == "seed"

    @property
    def _known(self) -> list[Any]:
        return [value for value in self.values if value is not None]


def swept_keys(runs: Sequence[Mirrored]) -> list[Key]:
    """The keys that have two values or more among the runs: choices first, then in the order of the configuration.

    Left out is what another key says already: an interpolation (`method.budget` beside `budget`), and what comes with
    a choice (the batch size of a model's recipe beside the model).
    """
    flat = [_flat(run.config) for run in runs]
    paths = list(dict.fromkeys(path for one in flat for path in one))
    paths.sort(key=lambda path: (not path.startswith(CHOICE), path.count(".")))  # stable
    found: list[Key] = []
    for path in paths:
        key = Key(path, tuple(one.get(path) for one in flat))
        if len({*map(repr, key._known)}) > 1 and not any(_tells(other, key) for other in found):
            found.append(key)
    return found


def _tells(other: Key, key: Key) -> bool:
    """Whether `other` says all that `key` does: the same values, or a choice that brings them with it."""
    if key.path.startswith(CHOICE):
        return False
    if other.values == key.values:
        return True
    if not other.path.startswith(CHOICE) or "." not in key.path:
        return False
    return len({*map(repr, zip(other.values, key.values, strict=True))}) == len({*map(repr, other.values)})


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values by path; without lists, classes, and what only says how a run is watched."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            if prefix or name not in WATCHING:
                found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool) and name != "_target_" and (prefix or name not in WATCHING):
            found[prefix + name] = value
    return {path: value for path, value in found.items() if path.removeprefix(CHOICE) not in WATCHING}


def with_held_out(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, and of methods that select nothing the accuracy on held-out queries too, which is their accuracy: so
    runs that select and runs that do not have a metric that compares.
    """
    found = dict(metrics)
    for name in metrics:
        prefix, slash, metric = name.rpartition("/")
        if metric == IN_SAMPLE and prefix + slash + HELD_OUT not in metrics:
            found |= {
                prefix + slash + HELD_OUT + end: metrics[name + end] for end in ("", *BOUNDS) if name + end in metrics
            }
    return found


def judged_metrics(runs: Sequence[Mirrored]) -> list[str]:
    """Names of the metrics with bounds that every run has, without those of the controls, and without an accuracy on
    queries that were selected on.
    """
    first, *others = runs
    shared = [name for name in first.metrics if all(name in run.metrics for run in others)]
    wanted = [name for name in shared if all(name + end in shared for end in BOUNDS)]
    left_out = {*CONTROLS, *([IN_SAMPLE] if any(name.endswith(f"/{HELD_OUT}") for name in wanted) else [])}
    kept = [name for name in wanted if name.rpartition("/")[2] not in left_out]
    return sorted(kept, key=lambda name: not name.endswith(f"/{HELD_OUT}"))  # stable


def headlines(metrics: Sequence[str]) -> list[str]:
    """The first metric of each query set."""
    first: dict[str, str] = {}
    for name in metrics:
        first.setdefault(name.rpartition("/")[0], name)
    return list(first.values())


def label(run: int, keys: Sequence[Key], without: Key | None = None) -> str:
    """A run by what it differs in: `ekfac budget=0.05`, without a key and without seeds."""
    parts = []
    for key in keys:
        value = key.values[run]
        if key != without and not key.repeats and value is not None:
            parts.append(str(value) if key.path.startswith(CHOICE) else f"{key.name}={value}")
    return " ".join(parts) or "all runs"


def curve(runs: Sequence[Mirrored], keys: Sequence[Key], key: Key, metric: str) -> list[tuple[Any, str, float]]:
    """Points (value of the key, series, metric) of a metric and of its bounds against a numeric key.

    A series is of the runs that differ in nothing but the key and seeds. Of several runs at a point the value is the
    mean, and the bounds are the widest, so that they hold every run's interval.
    """
    places: dict[tuple[str, Any], list[Mirrored]] = {}
    for number, run in enumerate(runs):
        if key.values[number] is not None:
            places.setdefault((label(number, keys, key), key.values[number]), []).append(run)
    points = []
    for (series, value), found in sorted(places.items()):
        low, high = (([run.metrics[metric + end] for run in found]) for end in BOUNDS)
        mean = sum(run.metrics[metric] for run in found) / len(found)
        points += [(value, series, mean), (value, f"{series} (low)", min(low)), (value, f"{series} (high)", max(high))]
    return points
