"""What selection of components can reach on one query set: single components, greedy curves, held-out numbers.

Works on any influence data set that holds products and self-products per component (Select or Project,
sections 5.2 and 5.3). Everything is on stored products; nothing here runs a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set, has_products
from tdaexp.selection.greedy import NEED_TRUTH, SEARCHES, HeldOut, admitted, cross_validated, order_components
from tdaexp.selection.subsets import OBJECTIVES, Products, products_of

DEPTH = re.compile(r"(?:^|(?<=\.))(\d+)\.")  # the first part of a name that is a number: the layer

STUDIED = 1 << 22
"""Dot products, by component, that a study looks at: what all orders and folds of them take is a matter of seconds."""
FEWEST = 20
"""Queries that are studied however many candidates they have."""


@dataclass(frozen=True)
class Curve:
    """One greedy path: `order` [K] positions, `share` [K] of the parameters up to each step, and along it the mean
    `accuracy` [K] and `fidelity` [K] on the queries it was found on. `held_out` [K] is the mean of the objective it was
    found by on queries that were not used, after as many steps, `held_out_share` [K] the mean share over folds.
    """

    order: np.ndarray
    share: np.ndarray
    accuracy: np.ndarray
    fidelity: np.ndarray
    held_out: np.ndarray
    held_out_share: np.ndarray


@dataclass(frozen=True)
class ComponentStudy:
    """Components of one query set: `table` (one row per component: component, type, depth, size, accuracy), `curves` by
    objective, `full` the full gradient's accuracy, `peak` the accuracy's highest point on its greedy path, `peak_share`
    the share of parameters there, `peak_held_out` [Q] what stopping at the peak gives queries that were not used.
    `asked` says of how many queries these are: those with a known source, or as many as `STUDIED` allows, at random.
    """

    table: pd.DataFrame
    curves: dict[str, Curve]
    full: float
    peak: float
    peak_share: float
    peak_held_out: np.ndarray
    asked: int


def study(dataset: xr.Dataset, settings: MetricSettings) -> dict[str, ComponentStudy]:
    """Study each query set on its queries whose sources are known; sets without one are left out, and all of a data
    set without products. Of sets with more products than `STUDIED` some queries are drawn.
    """
    if not has_products(dataset):
        return {}
    sets = {name: influence.with_truth(part) for name, part in by_query_set(dataset).items()}
    return {name: _study(_drawn(part, settings), settings) for name, part in sets.items() if len(part["query"])}


def _drawn(dataset: xr.Dataset, settings: MetricSettings) -> xr.Dataset:
    """At most so many queries that their products are `STUDIED` numbers, in their order."""
    count, most = dataset.sizes["query"], STUDIED // (dataset.sizes["candidate"] * dataset.sizes["component"])
    if count <= max(most, FEWEST):
        return dataset
    chosen = np.random.default_rng(settings.seed).choice(count, max(most, FEWEST), replace=False)
    return influence.of_queries(dataset, np.sort(chosen))


def held_out_accuracy(dataset: xr.Dataset, settings: MetricSettings) -> np.ndarray | None:
    """Retrieval accuracy of the method's own selection when it is repeated without the query that is judged, for each
    query whose sources are known.

    `dataset` holds one query set; what needs no source is selected on all its queries. None where the answer was not
    selected on its queries: only a search is, and it says so by its attributes `objective` and `budget`.
    """
    if "weight" not in dataset or dataset.attrs.get("objective") not in SEARCHES:
        return None
    sizes, budget = dataset["size"].values, dataset.attrs["budget"]
    by_truth = dataset.attrs["objective"] in NEED_TRUTH
    if by_truth:
        dataset = influence.with_truth(dataset)
    found = cross_validated(
        products_of(dataset),
        dataset.attrs["objective"],
        settings.folds,
        settings.seed,
        among=admitted(sizes, budget),
    )
    values = found.at_budget(sizes, budget)
    return values if by_truth else values[influence.truth_known(dataset)]


def describe(components: Sequence[str] | np.ndarray, sizes: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """Split component names into type and depth: layers.3.attn.q is attn.q at 3.

    Names of other layouts keep what stands before the number (`h.3.w` is `h.#.w`): type and depth together
    name a component. Depth is NaN where a component belongs to no layer.
    """
    found = [DEPTH.search(name) for name in components]
    kinds = [DEPTH.sub("#.", name, count=1).removeprefix("layers.#.") for name in components]
    return pd.DataFrame(
        {
            "component": components,
            "type": kinds,
            "depth": [float(match.group(1)) if match else np.nan for match in found],
            "size": sizes,
        }
    )


def by_type(studies: dict[str, ComponentStudy]) -> pd.DataFrame:
    """Mean single-component accuracy per component type and query set, with the number of components (Table 1)."""
    tables = {name: part.table for name, part in studies.items()}
    first = next(iter(tables.values()))
    order = list(dict.fromkeys(first["type"]))
    counts = first.groupby("type").agg(components=("size", "count"), parameters=("size", "mean")).loc[order]
    means = {name: table.groupby("type")["accuracy"].mean().loc[order] for name, table in tables.items()}
    return counts.assign(**means)


def _study(dataset: xr.Dataset, settings: MetricSettings) -> ComponentStudy:
    products, sizes = products_of(dataset), dataset["size"].values
    table = describe(dataset["component"].values, sizes)
    table["accuracy"] = products.single("accuracy").mean(axis=1)
    curves, folds = {}, {}
    for objective in OBJECTIVES:
        folds[objective] = cross_validated(products, objective, settings.folds, settings.seed, judged=objective)
        curves[objective] = _curve(products, sizes, objective, folds[objective])
    best = curves["accuracy"]
    top = int(best.accuracy.argmax())
    return ComponentStudy(
        table=table,
        curves=curves,
        full=float(best.accuracy[-1]),
        peak=float(best.accuracy[top]),
        peak_share=float(best.share[top]),
        peak_held_out=folds["accuracy"].at_peak(),
        asked=dataset.sizes["query"],
    )


def _curve(products: Products, sizes: np.ndarray, objective: str, folds: HeldOut) -> Curve:
    order, _ = order_components(products, objective)
    return Curve(
        order=order,
        share=np.cumsum(sizes[order]) / sizes.sum(),
        accuracy=products.along("accuracy", order).mean(axis=1),
        fidelity=products.along("fidelity", order).mean(axis=1),
        held_out=folds.values.mean(axis=1),
        held_out_share=(np.cumsum(sizes[folds.orders], axis=1) / sizes.sum()).mean(axis=0),
    )
