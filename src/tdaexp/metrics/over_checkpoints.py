"""Do the components that retrieve well stay the same while a model is trained? Choices at each checkpoint, held out.

Of each checkpoint's products on the same queries, with S_t the components that greedy search chooses at step t (to a
share of the parameters, or to its peak; `selection.greedy`) and T the last step:

    overlap       |S_t ∩ S_T| / |S_t ∪ S_T|                                         both chosen on all queries
    rank          Spearman's correlation over components of their accuracies alone, at t and at T
    here          accuracy at t of components chosen at t, on queries that were not chosen by
    at the last   accuracy at T of components chosen at t, on queries that were not chosen by

`halves` is the overlap of two choices at t on disjoint halves of the queries: chance among queries alone. An overlap
with the last set that is no lower says that nothing moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError
from tdaexp.selection.greedy import admitted, cut, order_components
from tdaexp.selection.subsets import Products, products_of, retrieved


@dataclass(frozen=True)
class AtCheckpoint:
    """What a checkpoint's choice is worth: `chosen` [K] bool on all queries, `alone` [K] accuracies of single
    components, retrieval [Q] of all components (`full`), of the held-out choice at this checkpoint (`here`) and at the
    last one (`at_last`), and the numbers `overlap`, `rank` and `halves`.
    """

    chosen: np.ndarray
    alone: np.ndarray
    full: np.ndarray
    here: np.ndarray
    at_last: np.ndarray
    overlap: float
    rank: float
    halves: float


def over_checkpoints(
    stores: Sequence[xr.Dataset], budget: float | None, settings: MetricSettings
) -> list[AtCheckpoint]:
    """Judge the choices at each checkpoint; `stores` are of one query set, oldest first.

    `budget` is a share of the parameters, None the peak of greedy search. Queries count whose sources are known in
    every store. Errors (UserError): stores of other components, no such query or a single one.
    """
    products, sizes = _products(stores)
    fold = np.random.default_rng(settings.seed).permutation(np.arange(products[0].dot.shape[-1]) % settings.folds)
    half = np.random.default_rng(settings.seed).permutation(np.arange(len(fold)) % 2) == 0
    sets = [_chosen(one, sizes, budget) for one in products]
    alone = [one.single("accuracy").mean(1) for one in products]
    last, found = products[-1], []
    for place, own in enumerate(products):
        here, later = np.zeros(len(fold)), np.zeros(len(fold))
        for number in np.unique(fold):
            held = fold == number
            picked = np.flatnonzero(_chosen(own.rows(~held), sizes, budget))
            here[held], later[held] = _retrieved(own.rows(held), picked), _retrieved(last.rows(held), picked)
        found.append(
            AtCheckpoint(
                sets[place],
                alone[place],
                _retrieved(own, np.arange(len(sizes))).astype(float),
                here,
                later,
                jaccard(sets[place], sets[-1]),
                float(spearman(alone[place][None], alone[-1][None])[0]),
                jaccard(_chosen(own.rows(half), sizes, budget), _chosen(own.rows(~half), sizes, budget)),
            )
        )
    return found


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Components that both choices [K] bool take over those that either takes."""
    return float((one & other).sum() / (one | other).sum())


def _products(stores: Sequence[xr.Dataset]) -> tuple[list[Products], np.ndarray]:
    """Each store's products on the queries that all have, in one order; and the components' sizes [K]."""
    first = stores[0]
    for one in stores:
        if "component" not in one["influence"].dims:
            raise UserError("runs: a store does not tell components apart; name runs of method=full or select")
        if one["component"].values.tolist() != first["component"].values.tolist():
            raise UserError("runs: the stores have other components; name checkpoints of one training")
    known = [influence.with_truth(one) for one in stores]
    shared = set.intersection(*(set(one["query"].values.tolist()) for one in known))
    wanted = [name for name in known[0]["query"].values.tolist() if name in shared]
    if len(wanted) < 2:
        raise UserError(f"runs: {len(wanted)} queries with a known source are in all stores; ask more of them")
    rows = [{name: row for row, name in enumerate(one["query"].values.tolist())} for one in known]
    parts = [
        influence.of_queries(one, np.array([own[name] for name in wanted]))
        for one, own in zip(known, rows, strict=True)
    ]
    return [products_of(one) for one in parts], first["size"].values


def _chosen(products: Products, sizes: np.ndarray, budget: float | None) -> np.ndarray:
    """Which components [K] bool greedy search by accuracy takes."""
    among = None if budget is None else admitted(sizes, budget)
    order, path = order_components(products, "accuracy", among)
    picked = order[: int(path.argmax()) + 1] if budget is None else cut(order, sizes, budget)
    return np.isin(np.arange(len(sizes)), picked)


def _retrieved(products: Products, picked: np.ndarray) -> np.ndarray:
    """Whether each query [Q] finds its source by these components."""
    return retrieved(products.of_subset(picked), products.source, products.rival)
