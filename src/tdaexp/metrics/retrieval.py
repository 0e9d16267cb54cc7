"""Retrieval of a query's source among its candidates (Select or Project, section 3.2).

All functions take `scores` [Q, C] (NaN = no such pair) and `truth` [Q, C] bool and give a value per query [Q]. Ties
never help: a source is outranked by every other candidate whose score is as high, so a query counts as retrieved only
under strict inequality. A query whose source is not among its candidates is a miss; one whose source is not known is
neither, and must be left out before.

Where candidates are the first and the last of many examples (`between` them there are so many others), ranks are those
among all: an accuracy, and a recall up to the first half, are what they would be if all were candidates, and of the
reciprocal rank it is only missing what a source between them has.
"""

from __future__ import annotations

import numpy as np

from tdaexp.selection.subsets import retrieved


def accuracy(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 where a source scores strictly higher than every candidate that is not one, else 0."""
    known = ~np.isnan(scores)
    return retrieved(scores.T, (truth & known).T, (~truth & known).T).astype(np.float64)


def reciprocal_rank(scores: np.ndarray, truth: np.ndarray, between: int = 0) -> np.ndarray:
    """One over the rank of the best source; 0 without one."""
    ranks = source_ranks(scores, truth, between)
    return np.asarray(1.0 / ranks.min(axis=1, initial=np.inf))


def recall(
    scores: np.ndarray, truth: np.ndarray, k: int, between: int = 0, sources: np.ndarray | None = None
) -> np.ndarray:
    """Share of the query's sources that are within the k best; 0 without one.

    Its sources are those among its candidates, or so many as `sources` [Q] says that there are.
    """
    found = (source_ranks(scores, truth, between) <= k).sum(axis=1)
    return np.asarray(found / np.maximum(truth.sum(axis=1) if sources is None else sources, 1))


def source_ranks(scores: np.ndarray, truth: np.ndarray, between: int = 0) -> np.ndarray:
    """Ranks of each query's sources, 1 = best: [Q, most sources of any query], infinite where there is none.

    `between`: so many examples that are no candidates rank behind the first half of these and before the second.
    """
    most = int(truth.sum(axis=1).max(initial=0))
    columns = np.argsort(~truth, axis=1, kind="stable")[:, :most]
    mine = np.take_along_axis(scores, columns, axis=1)[:, :, None]
    theirs = scores[:, None, :]  # comparisons with NaN are False
    earlier = np.arange(scores.shape[1]) < columns[:, :, None]  # of sources that tie, each has a place of its own
    ahead = np.where(truth[:, None, :] & ~earlier, theirs > mine, theirs >= mine).sum(axis=2)
    real = np.take_along_axis(truth & ~np.isnan(scores), columns, axis=1)
    ranks = 1.0 + ahead
    return np.where(real, ranks + np.where(ranks > scores.shape[1] / 2, between, 0), np.inf)
