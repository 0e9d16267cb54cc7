"""Which training examples act on which predictions, window by window of steps: numbers of ExPLAIND's section 5.2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.explaind import similarity
from tdaexp.papers import cyclic

CYCLIC = 0.1  # share of the variance from which on a matrix counts as cyclic; noise has 0.00 ± 0.01


def windows(stores: Sequence[xr.Dataset]) -> dict[str, xr.Dataset]:
    """The stores that keep train, query and component, in the order of time, by the steps that they count."""
    found = [store for store in stores if {"train", "query", "component"} <= set(store.attrs.get("keep", []))]
    found.sort(key=lambda store: (int(store["step"].values[0]), int(store["step"].values[-1])))
    return {f"steps {int(store['step'].values[0])}–{int(store['step'].values[-1])}": store for store in found}


def of_queries(store: xr.Dataset, name: str) -> xr.Dataset:
    """The queries of one query set."""
    return store.isel(query=store["query_set"].values == name)


def influence_of(store: xr.Dataset, component: str) -> np.ndarray:
    """Ψ of single training examples on single queries through a component: [query, train], outputs summed."""
    values = store["influence"].sel(component=component)
    values = values.sum("output") if "output" in values.dims else values
    found: np.ndarray = values.transpose("query", "train").values
    return found


def similarity_of(store: xr.Dataset, component: str) -> np.ndarray:
    """Sim of a component [query, query]: cosines of the queries' influences over the training examples."""
    return similarity(store, {"component": [component]}).values


def window_table(found: Mapping[str, xr.Dataset], sums: Mapping[str, int], modulus: int) -> pd.DataFrame:
    """Rows of `window`, `component`: how cyclic influence and similarity are, on the first query set.

    Only pairs of different residues count. `influence_cyclic` is of the influences less each training example's mean
    (`bands` is that mean's share of the variance), `similarity_cyclic` of the cosines; `…_cycles` is the mean number of
    cycles within the modulus of either, `main_cycles` the strongest of the similarity's. `sums` gives a + b by example.
    """
    rows = []
    for name, whole in found.items():
        store = of_queries(whole, str(whole["query_set"].values[0]))
        asked, trained = (np.array([sums[str(one)] for one in store[axis].values]) for axis in ("query", "train"))
        for component in map(str, store["component"].values):
            acts = cyclic.of_other_residues(influence_of(store, component), asked, trained, modulus)
            alike = cyclic.of_other_residues(similarity_of(store, component), asked, asked, modulus)
            power = cyclic.harmonics(alike, asked, asked, modulus)
            own = cyclic.without_bands(acts)
            rows.append(
                {
                    "window": name,
                    "component": component,
                    "bands": cyclic.band_share(acts),
                    "influence_cyclic": cyclic.cyclic_share(own, asked, trained, modulus),
                    "influence_cycles": cyclic.mean_harmonic(cyclic.harmonics(own, asked, trained, modulus)),
                    "similarity_cyclic": cyclic.cyclic_share(alike, asked, asked, modulus),
                    "similarity_cycles": cyclic.mean_harmonic(power),
                    "main_cycles": float(power.argmax() + 1) if np.isfinite(power).all() else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def window_numbers(table: pd.DataFrame) -> dict[str, float]:
    """`first/…` and `last/…` of the windows: each column by component; `emerged/…_cycles/…`, the cycles in the first
    window in which that component's matrix is cyclic at all (a share of `CYCLIC`; NaN: in none).
    """
    names = list(dict.fromkeys(table["window"]))
    found: dict[str, float] = {"windows": float(len(names))}
    for place, name in (("first", names[0]), ("last", names[-1])):
        for row in table[table["window"] == name].to_dict("records"):
            for key, value in row.items():
                if key not in ("window", "component"):
                    found[f"{place}/{key}/{row['component']}"] = float(value)
    for component, part in table.groupby("component", sort=False):
        for kind in ("influence", "similarity"):
            cycles = part.loc[part[f"{kind}_cyclic"] >= CYCLIC, f"{kind}_cycles"]
            found[f"emerged/{kind}_cycles/{component}"] = float(cycles.iloc[0]) if len(cycles) else float("nan")
    return found
