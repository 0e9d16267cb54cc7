"""In which order the numbers of judged methods stand: the best first, whichever way a metric points."""

from __future__ import annotations

import pandas as pd

LOWER = ("brittleness_same", "brittleness_own", "duplicates_apart", "linearity")
"""Metrics of which a lower value is the better one."""


def best_first(table: pd.DataFrame) -> pd.DataFrame:
    """Rows (`query_set`, `metric`, `value`, …) by query set and metric as these appear, the best value first."""
    first = table.groupby(["query_set", "metric"], sort=False).ngroup()
    goodness = (-table["value"]).where(table["metric"].isin(LOWER), table["value"])
    found = table.assign(first=first, goodness=goodness).sort_values(["first", "goodness"], ascending=[True, False])
    return found.drop(columns=["first", "goodness"])
