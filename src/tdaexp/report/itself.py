"""What training rows do for themselves: a store, and a file with outliers and suspects of wrong labels first.

A row that only its own gradient explains supports itself far more than others: it is rare, or its label is wrong
(Pruthi et al. 2020, section 4.1). Which of the two, only a person can tell.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.report.texts import Texts, train_text
from tdaexp.runtime.csvs import frame_csv
from tdaexp.runtime.files import SELF_INFLUENCE, write_text

log = logging.getLogger(__name__)
SUSPECTS = "suspects.csv"
FAR = 3.5
"""Modified z-score from which on a value counts as an outlier (Iglewicz and Hoaglin 1993)."""
NORMAL = 0.6745
"""The median absolute deviation of a normal variable, in standard deviations."""


def write_itself(folder: Path, dataset: xr.Dataset, texts: Texts | None) -> dict[str, float]:
    """Write `self_influence.zarr` and `suspects.csv`; returns how many rows there are, and outliers among them."""
    influence.save(dataset, folder / SELF_INFLUENCE)
    table = suspects(dataset, texts)
    write_text(folder / SUSPECTS, frame_csv(table))
    outliers = int(table["outlier"].sum())
    log.info("self-influence: %d of %d rows are outliers: %s", outliers, len(table), folder / SUSPECTS)
    return {"self_influence/rows": float(len(table)), "self_influence/outliers": float(outliers)}


def totals(dataset: xr.Dataset) -> dict[str, float]:
    """Self-influence of each row by id, over all components."""
    values = dataset["self_influence"].values.astype(np.float64).sum(1)
    return dict(zip(dataset["train"].values.tolist(), values.tolist(), strict=True))


def suspects(dataset: xr.Dataset, texts: Texts | None) -> pd.DataFrame:
    """Each row, by falling self-influence: `rank`, `row`, `self_influence`, `deviation`, `outlier`, `text`.

    `deviation` is the modified z-score of the logarithm (NaN where self-influence is 0), `outlier` whether it is above
    3.5. Ties go by the data's order.
    """
    known = totals(dataset)
    rows, values = list(known), np.array(list(known.values()))
    logs = np.log(values, out=np.full(len(values), np.nan), where=values > 0)
    centre = np.nanmedian(logs) if (values > 0).any() else np.nan
    spread = np.nanmedian(np.abs(logs - centre)) if (values > 0).any() else np.nan
    far = np.divide(NORMAL * (logs - centre), spread, out=np.zeros(len(logs)), where=spread > 0)
    deviation = np.where(np.isnan(logs), np.nan, far)
    order = np.argsort(-values, kind="stable")
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(rows) + 1),
            "row": [rows[place] for place in order],
            "self_influence": values[order],
            "deviation": deviation[order],
            "outlier": deviation[order] > FAR,
            "text": [train_text(texts, rows[place]).whole for place in order],
        }
    )
