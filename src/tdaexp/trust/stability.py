"""Would a question keep its top rows, had other parts of the model been counted?

An answer is a sum over components. If these are drawn anew with replacement, as many as there are (a bootstrap over
components), a ranking that many of them agree on stays, and one that hangs on a few is another each time. It is no
interval of an estimate: components are no sample, and what is wrong with all of them alike is not seen.
"""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged

BOUNDS = Bounds(0.8, 0.5)
RESAMPLES = 100
QUERIES = 200
WORK = 5e8  # multiplications of all resamples together, which decide how many queries are looked at: below a second


def best_of(rows: int, k: int) -> int:
    """How many of a question's rows count as its best: k, or half of them where that is less. Errors (NotMeasured): it
    has one row.
    """
    if rows < 2:
        raise NotMeasured("a question has no two rows to rank")
    return min(k, rows // 2)


def rank_stability(store: xr.Dataset, k: int) -> Check:
    """The mean share of a question's best rows (`best_of`) that are so by components that are drawn anew, too.

    Errors (NotMeasured): no components, or one that counts, or questions of one row.
    """
    if "candidate" not in store.dims or "component" not in store["influence"].dims:
        raise NotMeasured("the answer has no components, over which it could be drawn anew")
    rows = _chosen(store)
    part = influence.of_queries(store, rows).load()
    scores, counts = influence.scores(part).values, _counts(part)
    values = part["influence"].transpose("query", "candidate", "component").values
    squares = part["train_sq"].values if part.attrs["normalise"] == "cosine" else np.zeros_like(values[:, :, :0])
    shares: dict[str, float] = {}
    chance, best = [], []
    for row, name in enumerate(zip(part["query_set"].values, part["query"].values, strict=True)):
        there, chosen = ~np.isnan(scores[row]), counts[row]
        if there.sum() >= 2 and chosen.sum() >= 2:
            best.append(best_of(int(there.sum()), k))
            chance.append(best[-1] / there.sum())
            own = values[row][there][:, chosen], squares[row][there][:, chosen[: squares.shape[2]]]
            shares["/".join(name)] = _kept(scores[row][there], *own, best[-1])
    if not shares:
        raise NotMeasured("no question has two components that count and two rows to rank")
    value = float(np.mean(list(shares.values())))
    weak = sum(share < BOUNDS.bad for share in shares.values())
    says = (
        f"Of a question's {max(best)} best rows {100 * value:.0f} % stay so when the components are drawn anew "
        f"({100 * float(np.mean(chance)):.2g} % would by chance)"
        + (f"; of {weak} of {len(shares)} questions less than half." if weak else ".")
    )
    how = (
        f"bootstrap over components: {RESAMPLES} draws with replacement, for {len(shares)} of {store.sizes['query']} "
        "questions"
    )
    return judged("rank_stability", value, BOUNDS, says, how, shares)


def _chosen(store: xr.Dataset) -> np.ndarray:
    """Queries, evenly spaced, as many as the work allows."""
    count, size = store.sizes["query"], store.sizes["candidate"] * store.sizes["component"]
    times = 2 if store.attrs["normalise"] == "cosine" else 1
    most = int(min(count, QUERIES, max(1, WORK // max(1, times * size * RESAMPLES))))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _counts(part: xr.Dataset) -> np.ndarray:
    """Which components [Q, K] count in the queries' answers."""
    if "weight" not in part:
        return np.ones((part.sizes["query"], part.sizes["component"]), dtype=bool)
    weight = part["weight"].sel(query_set_name=part["query_set"]).transpose("query", "component")
    return np.asarray(weight.values > 0)


def _kept(scores: np.ndarray, values: np.ndarray, squares: np.ndarray, k: int) -> float:
    """Of one query's `scores` [C], which are made of `values` [C, K], and where they are cosines of the training
    examples' `squares` [C, K] (else [C, 0]).
    """
    draws = resamples(values.shape[1])
    found = _sums(values, draws)
    if squares.shape[1]:  # the query's own norm changes no order
        found /= np.sqrt(_sums(squares, draws)) + influence.EPSILON
    top = np.argsort(-scores, kind="stable")[:k]
    best = np.argsort(-found, axis=0, kind="stable")[:k]
    return float(np.isin(best, top).mean())


@functools.cache
def resamples(components: int) -> np.ndarray:
    """How often each component is drawn [components, RESAMPLES], the same in every run."""
    rng = np.random.default_rng(0)
    return rng.multinomial(components, np.full(components, 1 / components), size=RESAMPLES).T.astype(np.float64)


def _sums(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.asarray(values.astype(np.float64) @ draws)
