"""Runs that differ in a few keys alone, such as the seed, as one: means over them, with intervals of Student's t.

Runs of several seeds are studies of several models, so their numbers never stand in one section (`comparable`). Their
means do: methods compare where their runs lie in the same sections. A method with runs in some of these only (a sweep
that is half done) is listed with its number of runs, and not ranked.

The interval is that of the mean over runs: ± t(n − 1) s / √n, with s the standard deviation of the runs' values. It
speaks of other runs, not of other queries, and is not cut off where a metric ends (an accuracy's at 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

from tdaexp.metrics.best_first import best_first
from tdaexp.metrics.comparable import Section, difference, sections
from tdaexp.metrics.intervals import Interval, versus

LOW, HIGH = "_low", "_high"
COUNTED = ("queries", "with_truth")


def over_runs(values: Sequence[float] | np.ndarray, confidence: float) -> Interval:
    """Mean of n values with the interval of Student's t; without one where there is one value."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return Interval(float(found.mean()), math.nan, math.nan)
    half = float(student.ppf((1 + confidence) / 2, len(found) - 1)) * found.std(ddof=1) / math.sqrt(len(found))
    return Interval(float(found.mean()), float(found.mean() - half), float(found.mean() + half))


def average(
    table: pd.DataFrame, datasets: dict[str, xr.Dataset], groups: dict[str, list[str]], confidence: float
) -> pd.DataFrame:
    """The comparison of runs (`compare.tabulate`) by group (`grouping.groups_of`), query set and section.

    Columns as there: means, and intervals over runs where a run's number has one; NaN where one run has no number.
    Besides: `runs`, the number of runs, and `missing`, in how many models' comparisons of its section a method has no
    run: such a row is not ranked.
    """
    every = sections(datasets)
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(table["query_set"]):
        part = table[table["query_set"] == name]
        of = {label: part[part["method"].isin(members)] for label, members in groups.items()}
        of = {label: mine for label, mine in of.items() if len(mine)}
        homes = _homes({label: frozenset(mine["section"]) for label, mine in of.items()})
        mine_of = [one for one in every if one.query_set == name]
        controls = part[~part["method"].isin(list(datasets))]
        for number, (places, labels) in enumerate(homes):
            differs = _differs(mine_of, places, homes[0][0]) if number else ""
            place = {"query_set": name, "section": number, "differs": differs}
            within = {label: of[label] for label in labels}
            beside = controls[controls["section"].isin(places)]
            within |= {str(label): lines for label, lines in beside.groupby("method", sort=False)}
            for label, lines in within.items():
                missing = len(places) - lines["section"].nunique()
                rows.append({**_mean_row(lines, confidence), "method": label, **place, "missing": missing})
    found = pd.DataFrame(rows)
    found.attrs |= table.attrs
    return found


def _homes(places: dict[str, frozenset[int]]) -> list[tuple[frozenset[int], list[str]]]:
    """Sections of means, as `sections` has them for queries: who has runs in some of another's places stands with it.

    Each is the places of its largest group, and the groups, in order of first appearance.
    """
    found: list[tuple[frozenset[int], list[str]]] = []
    for label, mine in sorted(places.items(), key=lambda one: -len(one[1])):  # stable
        home = next((labels for whole, labels in found if mine <= whole), None)
        if home is None:
            found.append((mine, home := []))
        home.append(label)
    order = {label: place for place, label in enumerate(places)}
    for _, labels in found:
        labels.sort(key=order.__getitem__)
    return sorted(found, key=lambda one: order[one[1][0]])


def _differs(every: list[Section], places: Iterable[int], first: Iterable[int]) -> str:
    """What differs from the first section, in the words of the two single sections that are nearest to each other."""
    told = [difference(every[mine].whole, every[other].whole) for mine in sorted(places) for other in sorted(first)]
    return min(told, key=lambda text: (text.count(","), len(text)))


def _mean_row(rows: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """One row of several: numbers averaged, with intervals where each has one; the first of texts."""
    found: dict[str, Any] = {"runs": len(rows)}
    for name in rows.columns:
        values = rows[name]
        if values.dtype.kind == "b" or (values.dtype == object and all(isinstance(one, bool) for one in values)):
            found[name] = bool(values.any())
        elif name in COUNTED:
            found[name] = values.min()
        elif values.dtype.kind not in "iuf":
            found[name] = values.iloc[0]
        elif name == "damping":
            found[name] = values.iloc[0] if values.nunique(dropna=False) == 1 else math.nan
        elif not name.endswith((LOW, HIGH)):
            mean = over_runs(values.to_numpy(), confidence)
            found[name] = mean.value
            if name + LOW in rows:
                bounded = rows[name + LOW].notna().all()
                found[name + LOW], found[name + HIGH] = (mean.low, mean.high) if bounded else (math.nan, math.nan)
    low = found.get("minus_bm25" + LOW, math.nan)
    found["vs_bm25"] = "" if math.isnan(low) else versus(
        Interval(found["minus_bm25"], low, found["minus_bm25" + HIGH])
    )  # fmt: skip
    return found


def mean_metrics(runs: Sequence[dict[str, float]], confidence: float) -> dict[str, float]:
    """Flat metrics (`judge.flat_metrics`) of several runs as one: what all have, averaged, and their number `runs`."""
    found: dict[str, float] = {"runs": float(len(runs))}
    for key in runs[0]:
        if key.endswith((LOW, HIGH)) or not all(key in run for run in runs):
            continue
        mean = over_runs([run[key] for run in runs], confidence)
        found[key] = mean.value
        if len(runs) > 1 and all(key + LOW in run for run in runs):
            found[key + LOW], found[key + HIGH] = mean.low, mean.high
    return found


def mean_retrained(table: pd.DataFrame, groups: dict[str, list[str]], confidence: float) -> pd.DataFrame:
    """What judging by retraining says of runs (`method`, `query_set`, `metric`, `value`, …) as of their groups.

    Controls, which stand once for each model, are averaged over models.
    """
    named = {one: label for label, members in groups.items() for one in members}
    rows = []
    keys = table["method"].map(lambda one: named.get(one, one)), table["query_set"], table["metric"]
    for (label, query_set, metric), part in table.groupby(list(keys), sort=False):
        mean = over_runs(part["value"].to_numpy(), confidence)
        about = {"method": label, "query_set": query_set, "metric": metric, "queries": part["queries"].min()}
        rows.append({**about, "value": mean.value, "low": mean.low, "high": mean.high, "runs": len(part)})
    return best_first(pd.DataFrame(rows))
