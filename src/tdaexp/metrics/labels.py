"""What stores are called, and what their runs were asked: by key, with the choices of groups before the groups' keys.

A run notes in its store which choice of each group it took (`method=ekfac_mlp`); a `_target_` is nobody's name for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import xarray as xr

TOLD = 3  # keys that a label names
CLASS = "_target_"
GROUPS = ("method", "model", "dataset", "candidates", "decoding")
"""Groups of the configuration that say what is asked, and of whom."""


def distinct_labels(datasets: Sequence[xr.Dataset]) -> list[str]:
    """Labels of the stores; where several have one label, what differs between their runs stands behind it."""
    return told_apart([str(dataset.attrs["label"]) for dataset in datasets], [asked(one) for one in datasets])


def told_apart(labels: Sequence[str], runs: Sequence[dict[str, Any]]) -> list[str]:
    """The labels, with what differs between the `runs` (`asked`) of one label behind it.

    Choices of groups come first, and speak for the keys below them; else the first `TOLD` keys that differ are named.
    Beyond them stand those keys without which two would look the same.
    """
    found = list(labels)
    for label in [label for label, count in Counter(found).items() if count > 1]:
        same = [k for k, own in enumerate(labels) if own == label]
        enough = _enough([runs[k] for k in same])
        for number, k in enumerate(same, start=1):
            told = ", ".join(f"{key}={spelt(runs[k].get(key))}" for key in enough)
            found[k] = f"{label} [{told}]" if told else label
            found[k] += f" ({number})" if found[k] in found[:k] else ""
    return found


def asked(dataset: xr.Dataset) -> dict[str, Any]:
    """What a store's run was asked, flat: the choice of each group, and each key below it but for names of classes.

    Where no choice is known (calls from Python, stores of earlier versions) a class stands for it, by its last word.
    """
    flat = flat_config(dataset.attrs.get("config") or {})
    classes = {
        key.removesuffix(f".{CLASS}"): re.split(r"[.:]", str(value))[-1].lower()
        for key, value in flat.items()
        if key.endswith(f".{CLASS}")
    }
    plain = {key: value for key, value in flat.items() if key.rpartition(".")[2] != CLASS}
    return {**plain, **classes, **(dataset.attrs.get("choices") or {})}


def flat_config(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, without those that only say how a result is judged."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flat_config(value, f"{above}{key}.")
        else:
            flat[above + key] = value
    return {key: value for key, value in flat.items() if not key.startswith("metric.")}


def follows(key: str, runs: Sequence[dict[str, Any]]) -> bool:
    """Whether a key is that of the same name above it in each of the runs that have it, as `method.seed: ${seed}`."""
    name = key.rpartition(".")[2]
    return "." in key and all(name in run and run[name] == run[key] for run in runs if key in run)


def differing(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values differ between the runs, in order of their names, without those that follow another one."""
    keys = sorted({key for run in runs for key in run})
    return [key for key in keys if len({spelt(run.get(key)) for run in runs}) > 1 and not follows(key, runs)]


def common(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all runs were asked alike."""
    return {key: value for key, value in runs[0].items() if all(key in run and run[key] == value for run in runs)}


def spelt(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _enough(runs: list[dict[str, Any]]) -> list[str]:
    """The first groups that differ, else keys, and of the others those that tell more runs apart."""

    def kinds(chosen: list[str]) -> int:
        return len({tuple(spelt(run.get(key)) for key in chosen) for run in runs})

    keys = differing(runs)
    groups = [key for key in GROUPS if key in keys]
    rest = [key for key in keys if key not in groups]
    chosen = (groups or rest)[:TOLD]
    for key in [*groups, *rest]:
        if key not in chosen and kinds([*chosen, key]) > kinds(chosen):
            chosen.append(key)
    return chosen
