"""The page of one path decomposition: what every store of `method=explaind` shows, whichever axes it kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.explaind import reconstruction
from tdaexp.metrics.loss_change import loss_change
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.path_plots import by_component, completeness, totals

PARTS = ("influence", "regularisation", "first_moment", "rest")
TOP = 10  # training examples that are named for a query, or for all
QUERIES = 20  # queries that have their training examples named


def decomposition_findings(store: xr.Dataset, name: str) -> Findings:
    """Figures and tables of a store, and how well its sums reproduce what was decomposed; `name` is the method's."""
    measures = loss_change(store) if store.attrs.get("updates") == "simulated" else reconstruction(store)
    findings = Findings(f"{name}: an account of {store.attrs.get('output', 'the loss')}")
    findings.metrics = {f"{name}/{key}": value for key, value in measures.items()}
    findings.metrics[f"{name}/nodes"] = float(store["nodes"].mean())
    findings.statements = [_account(store), _completeness(store, measures)]
    if "entry_error" in store.attrs:
        findings.metrics[f"{name}/entry_error"] = store.attrs["entry_error"]
        findings.statements.append(_entries(store))
    if store.sizes["step"] > 1:
        caption = "How far the outputs moved in every step, what the sums leave of it, and the nodes of the quadrature."
        caption += " What single entries are off by is another question." if "entry_error" in store else ""
        findings.drawings.append(Drawing("completeness", caption, completeness(store), wide=True))
    shares = component_sums(store)
    if "component" in shares.dims:
        if "step" in store["influence"].dims:
            findings.drawings += _over_steps(store)
        caption = (
            "What every component contributed to the outputs, summed over all that is counted, by training examples "
            "and by weight decay."
        )
        findings.drawings.append(Drawing("components", caption, totals(shares)))
        columns = {str(part): shares.sel(part_of_update=part).values for part in shares["part_of_update"].values}
        findings.tables["components"] = pd.DataFrame({"component": shares["component"].values.astype(str), **columns})
    if "train" in store["influence"].dims:
        findings.tables["train"] = most_influential(store)
        if "query" in store["influence"].dims:
            findings.tables["train_by_query"] = by_query(store)
    return findings


def component_sums(store: xr.Dataset) -> xr.DataArray:
    """Signed sums [part_of_update, component] of the parts that there are; without component where that was summed."""
    found = {part: store[part] for part in PARTS if part in store}
    summed = [values.sum([axis for axis in values.dims if axis != "component"]) for values in found.values()]
    names = xr.DataArray(list(found), dims="part_of_update")
    return xr.concat(summed, dim="part_of_update").assign_coords(part_of_update=names)


def most_influential(store: xr.Dataset) -> pd.DataFrame:
    """The `TOP` training examples with the largest absolute influence, summed over queries: `train`, `influence` (the
    signed sum, positive: queries became more likely), `absolute`.
    """
    values = _of_train(store)
    signed, size = values.sum("query") if "query" in values.dims else values, abs(values)
    size = size.sum("query") if "query" in size.dims else size
    order = np.argsort(-size.values, kind="stable")[:TOP]
    names = store["train"].values[order].astype(str)
    return pd.DataFrame({"train": names, "influence": signed.values[order], "absolute": size.values[order]})


def by_query(store: xr.Dataset) -> pd.DataFrame:
    """For the first `QUERIES` queries their `TOP` training examples by absolute influence: `query`, `train`,
    `influence`.
    """
    values, rows = _of_train(store).transpose("query", "train"), []
    for query, row in list(zip(store["query"].values, values.values, strict=True))[:QUERIES]:
        for place in np.argsort(-np.abs(row), kind="stable")[:TOP]:
            rows.append({"query": str(query), "train": str(store["train"].values[place]), "influence": row[place]})
    return pd.DataFrame(rows)


def _of_train(store: xr.Dataset) -> xr.DataArray:
    """Influence over train and, where it was kept, query."""
    values = store["influence"]
    return values.sum([axis for axis in values.dims if axis not in ("train", "query")])


def _over_steps(store: xr.Dataset) -> list[Drawing]:
    """Importance, and signed sums, by component over steps."""
    found = []
    wanted = {
        "importance": "Importance of training examples",
        "importance_regularisation": "Importance of weight decay",
        "importance_first_moment": "Importance of the first moment",
    }
    if titles := {key: title for key, title in wanted.items() if key in store}:
        caption = "Absolute contributions by component in every step, summed over queries and outputs."
        found.append(Drawing("importance", caption, by_component(_summed(store, titles), titles), wide=True))
    signed = {
        "influence": "Influence of training examples",
        "regularisation": "Influence of weight decay",
        "first_moment": "Influence of the first moment",
    }
    titles = {key: title for key, title in signed.items() if key in store}
    caption = "Signed contributions by component in every step, summed over queries and outputs."
    return [*found, Drawing("influence", caption, by_component(_summed(store, titles), titles), wide=True)]


def _summed(store: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    kept = ("component", "step")
    return xr.Dataset(
        {name: store[name].sum([axis for axis in store[name].dims if axis not in kept]) for name in names}
    )


def _account(store: xr.Dataset) -> Statement:
    sums = {part: float(store[part].sum()) for part in PARTS if part in store}
    words = {
        "influence": "training examples",
        "regularisation": "weight decay",
        "first_moment": "the first moment",
        "rest": "training examples that were not counted one by one",
    }
    told = ", ".join(f"{words[part]} {value:+.4g}" for part, value in sums.items())
    steps, queries = store.sizes["step"], store.sizes["query"]
    text = f"Over {steps} steps, {queries} queries and all outputs: {told}."
    return Statement("What moved the outputs", text)


def _completeness(store: xr.Dataset, measures: Mapping[str, float]) -> Statement:
    moved, left = float(np.sqrt((store["change"] ** 2).sum())), float(np.sqrt((store["residual"] ** 2).sum()))
    text = f"The sums leave {left / moved:.2g} of the outputs' change (ratio of norms)." if moved else "Nothing moved."
    if "agreement" in measures:
        text += f" They give the model's classes for a share of {measures['agreement']:.4f}, with a KL divergence of "
        text += f"{measures['kl']:.2g} nats."
    return Statement("How complete the account is", text)


def _entries(store: xr.Dataset) -> Statement:
    axes = " × ".join(map(str, store["influence"].dims)) or "one sum"
    text = (
        f"Complete sums say nothing of a single entry ({axes}): these are off by about "
        f"{100 * store.attrs['entry_error']:.2g} % of their size, as estimated by a finer quadrature on a few of them."
    )
    return Statement("How exact a single entry is", text)
