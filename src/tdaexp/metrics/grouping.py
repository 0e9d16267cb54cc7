"""Which stores are runs of one thing: those whose configurations differ in the keys that are averaged over alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import xarray as xr

from tdaexp.metrics.labels import asked, common, flat_config, spelt, told_apart
from tdaexp.runtime.errors import UserError, nearest, unknown

log = logging.getLogger(__name__)
Config = dict[str, Any]


def groups_of(datasets: dict[str, xr.Dataset], over: Sequence[str]) -> dict[str, list[str]]:
    """Labels of the stores that are averaged, by the label of their mean; stores without a configuration stand alone.

    A key that only follows one of `over` (`method.seed: ${seed}`) may differ, too. Of two runs of the same values the
    last is taken, and that is said. Errors (UserError): a key that no run has, or that has one value in every group.
    """
    configs = {label: flat_config(store.attrs.get("config") or {}) for label, store in datasets.items()}
    _check_keys(configs, over)
    apart: dict[tuple[Any, ...], list[str]] = {}
    for label, config in configs.items():
        apart.setdefault(_rest(config, over) if config else (label,), []).append(label)
    split = [group for members in apart.values() for group in _split(members, configs, over)]
    groups = [_without_repeats(members, configs, over) for members in split]
    if all(len(members) == 1 for members in groups):
        raise UserError(f"over={','.join(over)}: {_nothing(configs, over)}")
    runs = [common([asked(datasets[label]) for label in members]) for members in groups]
    labels = told_apart([_label([datasets[label] for label in members]) for members in groups], runs)
    for label, members in zip(labels, groups, strict=True):
        if len(members) == 1:
            log.warning("over=%s: '%s' has one run, so its row has no interval", ",".join(over), label)
    return dict(zip(labels, groups, strict=True))


def _check_keys(configs: dict[str, Config], over: Sequence[str]) -> None:
    known = sorted({key for config in configs.values() for key in config})
    for key in over:
        if key in known:
            continue
        below = [one for one in known if one.startswith(f"{key}.") and not one.endswith("_target_")]
        if below:
            raise UserError(f"over={key}: is a set of keys; name those that runs differ in, e.g. over={below[0]}")
        near = nearest(key, known)
        raise unknown("key", key, [near] if near else [], "over", hint="none of the runs has it")


def _rest(config: Config, over: Sequence[str]) -> tuple[Any, ...]:
    """A configuration without the keys of `over` and those of the same name below, of which `_split` decides."""
    left = sorted((key, str(value)) for key, value in config.items() if key not in over and not _below(key, over))
    return tuple(left)


def _below(key: str, over: Sequence[str]) -> bool:
    return "." in key and key.rpartition(".")[2] in over


def _split(members: list[str], configs: dict[str, Config], over: Sequence[str]) -> list[list[str]]:
    """The members, those apart whose keys below are neither copies of a key of `over` nor the same in all of them."""
    below = sorted({key for label in members for key in configs[label] if _below(key, over) and key not in over})
    found: dict[tuple[str, ...], list[str]] = {}
    varied = [key for key in below if len({str(configs[label].get(key)) for label in members}) > 1]
    for label in members:
        mine = configs[label]
        copies = [key in mine and mine[key] == mine.get(key.rpartition(".")[2]) for key in varied]
        own = tuple("" if copy else str(mine.get(key)) for key, copy in zip(varied, copies, strict=True))
        found.setdefault(own, []).append(label)
    return list(found.values())


def _without_repeats(members: list[str], configs: dict[str, Config], over: Sequence[str]) -> list[str]:
    found: dict[tuple[str, ...], str] = {}
    for label in members:
        values = tuple(str(configs[label].get(key)) for key in over)
        if configs[label] and values in found:
            told = ", ".join(f"{key}={value}" for key, value in zip(over, values, strict=True))
            log.warning("over=%s: '%s' is a second run of %s; the last one counts", ",".join(over), label, told)
        found[values] = label
    return list(found.values())


def _nothing(configs: dict[str, Config], over: Sequence[str]) -> str:
    """Why there is nothing to average."""
    values = {key: sorted({spelt(config[key]) for config in configs.values() if key in config}) for key in over}
    same = [f"{key}={found[0]}" for key, found in values.items() if len(found) == 1]
    if len(same) == len(over):
        key = over[0]
        return (
            f"every run has {', '.join(same)}, and a mean needs runs of several values; run "
            f"`python attribute.py … -m {key}=A,B,C`, or leave over out"
        )
    return "no two runs differ in these keys alone, so there is nothing to average; name all keys that they differ in"


def _label(stores: list[xr.Dataset]) -> str:
    """The label that all have, or the method's name: a label may tell what is averaged over."""
    labels = {str(store.attrs["label"]) for store in stores}
    return labels.pop() if len(labels) == 1 else str(stores[0].attrs["method"])
