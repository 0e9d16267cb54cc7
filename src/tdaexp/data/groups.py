"""Records of several groups (languages, sources): which group each is of, and draws that keep their shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

ALL = "all"


def groups_of(records: Sequence[Record]) -> list[str]:
    """The group of each record (`meta["group"]`); records without one are of the group `all`."""
    return [str(record.meta.get("group", ALL)) for record in records]


def stratified(groups: Sequence[str], size: int, seed: Sequence[int], where: str) -> np.ndarray:
    """`size` places in ascending order, drawn without replacement; each group has its share, rounded to the nearest.

    Errors (UserError): fewer places than that; `where` is the key that asked for so many.
    """
    if size > len(groups):
        raise UserError(f"{where}={size}: there are {len(groups)} records to draw from; lower it, or give more text")
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    exact = np.bincount(places, minlength=len(names)) * size / len(groups)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1  # the largest remainders
    generator = np.random.default_rng(list(seed))
    drawn = [
        generator.choice(np.flatnonzero(places == place), count, replace=False) for place, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)
