"""Models trained again on subsets of the examples, as something that a selection can be judged by.

A subset of components foretells them as far as, over the models, its scores summed over each model's examples and what
that model measures of a query have the same order (`metrics.lds`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from tdaexp import influence
from tdaexp.runtime.errors import UserError

LDS = "lds"


@dataclass(frozen=True)
class Trials:
    """Models trained again: `members` [S, C] bool says on which of the candidates, `outputs` [S, Q] what they measured
    of the queries.
    """

    members: np.ndarray
    outputs: np.ndarray


def foretold(scores: np.ndarray, trials: Trials) -> np.ndarray:
    """Spearman's correlation over trials of summed scores [..., C, Q] with what was measured, to [..., Q].

    0 where either is the same in all trials: nothing is foretold.
    """
    sums = trials.members.astype(np.float64) @ scores
    left, right = (rankdata(values, axis=-2) for values in (sums, trials.outputs))
    left, right = (ranks - ranks.mean(axis=-2, keepdims=True) for ranks in (left, right))
    norms = np.sqrt((left * left).sum(axis=-2) * (right * right).sum(axis=-2))
    covariance = (left * right).sum(axis=-2)
    return np.asarray(np.divide(covariance, norms, out=np.zeros_like(norms), where=norms > 0))


def varying(dataset: xr.Dataset) -> xr.Dataset:
    """The data set with the queries whose measurement is not the same in all models trained again.

    Errors (UserError): there is none.
    """
    places = np.flatnonzero(np.ptp(dataset["retrained"].values, axis=0) > 0)
    if not len(places):
        raise UserError("method.objective=lds: models trained again measure the same of every query; leave more out "
                        "(method.left_out)")  # fmt: skip
    return influence.of_queries(dataset, places)


def in_order(names: np.ndarray, rows: pd.Index) -> np.ndarray:
    """Columns [q, C] of the candidates `names` [q, C] in the order of the training examples `rows`.

    Errors (UserError): a query lacks a training example.
    """
    places = rows.get_indexer(names.ravel()).reshape(names.shape)
    order: np.ndarray = places.argsort(axis=1)
    if names.shape[1] != len(rows) or (np.take_along_axis(places, order, 1) != np.arange(len(rows))).any():
        raise UserError(
            "method.objective=lds: sums over the training examples need a score of each; set candidates=all"
        )
    return order
