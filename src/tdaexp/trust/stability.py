"""Would a question keep its top rows, had other parts of the model been counted?

An answer is a sum over components. If these are drawn anew with replacement, as many as there are (a bootstrap over
components), a ranking that many of them agree on stays, and one that hangs on a few is another each time. It is no
interval of an estimate: components are no sample, and what is wrong with all of them alike is not seen.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.trust.check import Bounds, Check, NotMeasured, judged

BOUNDS = Bounds(0.8, 0.5)
RESAMPLES = 100
QUERIES = 200
WORK = 5e8  # multiplications of all resamples together, which decide how many queries are looked at: below a second


def rank_stability(store: xr.Dataset, k: int) -> Check:
    """The mean share of a question's k best rows that are among its k best by components that are drawn anew.

    Errors (NotMeasured): no components, one that counts, or no more than k rows to rank.
    """
    if "candidate" not in store.dims or "component" not in store["influence"].dims:
        raise NotMeasured("the answer has no components, over which it could be drawn anew")
    rows = _chosen(store)
    part = influence.of_queries(store, rows)
    shares: dict[str, float] = {}
    chance = []
    for place in range(len(rows)):
        one = part.isel(query=slice(place, place + 1))
        kept = _kept(one, k)
        if kept is not None:
            shares[f"{one['query_set'].values[0]}/{one['query'].values[0]}"] = kept
            chance.append(k / int((one["train"].values != "").sum()))
    if not shares:
        raise NotMeasured(f"every question has one component that counts, or no more than {k} rows to rank")
    value = float(np.mean(list(shares.values())))
    weak = sum(share < BOUNDS.bad for share in shares.values())
    says = (
        f"Of a question's {k} best rows {100 * value:.0f} % stay among the {k} best when the components are drawn anew "
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


def _kept(one: xr.Dataset, k: int) -> float | None:
    """Of one query; None where there is nothing to draw from or to rank."""
    scores = influence.scores(one).values[0]
    there = ~np.isnan(scores)
    counts = np.ones(one.sizes["component"], dtype=bool)
    if "weight" in one:
        counts = one["weight"].sel(query_set_name=one["query_set"].values[0]).values > 0
    if there.sum() <= k or counts.sum() < 2:
        return None
    draws = resamples(int(counts.sum()))
    found = _sums(one["influence"].values[0][there][:, counts], draws)
    if one.attrs["normalise"] == "cosine":  # the query's own norm changes no order
        found /= np.sqrt(_sums(one["train_sq"].values[0][there][:, counts], draws)) + influence.EPSILON
    top = np.argsort(-scores[there], kind="stable")[:k]
    best = np.argsort(-found, axis=0, kind="stable")[:k]
    return float(np.isin(best, top).mean())


def resamples(components: int) -> np.ndarray:
    """How often each component is drawn [components, RESAMPLES], the same in every run."""
    rng = np.random.default_rng(0)
    return rng.multinomial(components, np.full(components, 1 / components), size=RESAMPLES).T.astype(np.float64)


def _sums(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.asarray(values.astype(np.float64) @ draws)
