"""Which numeric keys runs differ in, and which runs lie on one line along such a key: those that differ in it alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from tdaexp.metrics.labels import asked, common, differing, spelt, told_apart


@dataclass(frozen=True)
class Axis:
    """A key, and by the name of each line its points: values of the key, rising, with the labels of their rows.

    `without` are the labels of rows that have no such key, or no value of it.
    """

    key: str
    lines: dict[str, list[tuple[float, str]]]
    without: list[str] = field(default_factory=list)


def axes_of(datasets: dict[str, xr.Dataset], groups: dict[str, list[str]]) -> list[Axis]:
    """The axes of a comparison whose rows (`grouping.groups_of`) are means over runs, or runs; seeds are none.

    A line has two values at least, and is named by its method and what else it was asked.
    """
    runs = {label: common([asked(datasets[one]) for one in members]) for label, members in groups.items()}
    methods = {label: str(datasets[members[0]].attrs["method"]) for label, members in groups.items()}
    found = []
    for key in differing(list(runs.values())):
        name = key.rpartition(".")[2]
        if len({run[key] for run in runs.values() if _number(run.get(key))}) > 1 and not name.endswith("seed"):
            lines = _lines(key, runs, methods)
            without = [label for label, run in runs.items() if run.get(key) is None]
            found += [Axis(key, lines, without)] if lines else []
    return found


def _lines(key: str, runs: dict[str, dict[str, Any]], methods: dict[str, str]) -> dict[str, list[tuple[float, str]]]:
    apart: dict[tuple[Any, ...], list[str]] = {}
    for label, run in runs.items():
        if _number(run.get(key)):
            copies = [one for one in run if one.endswith(f".{key}") and run[one] == run[key]]
            rest = {one: spelt(value) for one, value in run.items() if one != key and one not in copies}
            apart.setdefault((methods[label], *sorted(rest.items())), []).append(label)
    lines = [labels for labels in apart.values() if len({runs[label][key] for label in labels}) > 1]
    names = told_apart([methods[labels[0]] for labels in lines], [common([runs[one] for one in own]) for own in lines])
    return {
        name: sorted((float(runs[label][key]), label) for label in labels)
        for name, labels in zip(names, lines, strict=True)
    }


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
