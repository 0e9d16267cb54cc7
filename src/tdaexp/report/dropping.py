"""Which training rows to leave out, by what they did to the questions or to themselves."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
COLUMN = {"harmful": "mean", "helpful": "mean", "self": "self_influence"}
"""The column of `rows.csv` that a choice goes by."""


def chosen(values: pd.Series, drop: float, by: str) -> pd.Series:
    """The rows to leave out with their values, most of it first: `values` by row, NaN where a row has none.

    `drop` below 1 is a share of all rows, else their number. `harmful` takes the lowest values, below 0 only; `helpful`
    the highest, above 0 only; `self` the highest. Ties go by the rows' order. Errors (UserError): no row is left, or
    none is such.
    """
    count = max(1, round(drop * len(values))) if drop < 1 else int(drop)
    if count >= len(values):
        raise UserError(f"drop={drop:g}: is all of the {len(values)} training rows; take fewer")
    signed = -values if by == "harmful" else values
    able = signed[signed > 0] if by != "self" else signed.dropna()
    if able.empty:
        raise UserError(f"drop_by={by}: no training row has such a value ({COLUMN[by]} in rows.csv)")
    if len(able) < count:
        log.warning("drop: only %d of the %d rows asked for are %s", len(able), count, by)
    order = np.argsort(-able.to_numpy(), kind="stable")[:count]
    return values[able.index[order]]
