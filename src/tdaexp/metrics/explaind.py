"""The accounts that ExPLAIND takes of its influence tensor (Eichin et al. 2026, section 4), with the paper's names.

They read a store of `method=explaind` over the axes that it kept; an axis that was summed cannot be chosen from. Values
have the store's sign (contributions to the output): Ψ of the paper is their negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tdaexp.runtime.errors import UserError

Chosen = Mapping[str, Any]
"""Axis -> labels that are counted; an axis that is left out counts as a whole."""


def accumulated_influence(
    store: xr.Dataset, over: list[str], chosen: Chosen | None = None, part: str = "influence"
) -> xr.DataArray:
    """Ψ: the sum of a part (`influence`, `regularisation` for Ψ^reg, `first_moment`) over the axes `over`.

    Errors (UserError): the store lacks the part or an axis.
    """
    values = _chosen(store, part, chosen or {}, over)
    return values.sum([axis for axis in over if axis in values.dims], skipna=False)


def relative_regularisation(store: xr.Dataset, over: list[str], chosen: Chosen | None = None) -> xr.DataArray:
    """D: Ψ − Ψ^reg over the axes `over`, in the paper's sign (of ψ: the store's is the opposite)."""
    without = [axis for axis in over if axis != "train"]
    kernel = accumulated_influence(store, over, chosen)
    decay = {axis: labels for axis, labels in (chosen or {}).items() if axis != "train"}
    return accumulated_influence(store, without, decay, "regularisation") - kernel


def similarity(store: xr.Dataset, chosen: Chosen | None = None) -> xr.DataArray:
    """Sim [query, query_other]: cosine of two queries' influences over all kept axes. NaN where one has none."""
    values = _chosen(store, "influence", chosen or {}, ["query"])
    flat = values.transpose("query", ...).values.reshape(values.sizes["query"], -1).astype(np.float64)
    norms = np.linalg.norm(flat, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = flat @ flat.T / np.outer(norms, norms)
    names = values["query"].values
    return xr.DataArray(cosine, dims=("query", "query_other"), coords={"query": names, "query_other": names})


def _chosen(store: xr.Dataset, part: str, chosen: Chosen, over: list[str]) -> xr.DataArray:
    if part not in store:
        raise UserError(f"influence store: has no '{part}'; a path decomposition is made by method=explaind")
    values = store[part]
    for axis in [*chosen, *over]:
        if axis not in values.dims and not (axis in over and axis == "train"):
            kept = ", ".join(map(str, values.dims))
            raise UserError(f"influence store: the axis {axis} was summed (kept: {kept}); add it to method.keep")
    return values.sel({axis: np.atleast_1d(labels) for axis, labels in chosen.items()})


def reconstruction(store: xr.Dataset) -> dict[str, float]:
    """How the sums reproduce a classifier's outputs: `agreement` of classes and mean `kl` in nats (Table 1 there).

    For a store of logits or log-probabilities over steps that follow each other: the sums of others lead to no model.
    `error` is the mean absolute residual of any output.
    """
    found = {"error": float(np.abs(store["residual"]).mean())}
    gaps = bool((np.diff(store["step"]) != 1).any())
    if gaps or store.attrs["output"] not in ("logits", "log_probabilities"):
        return found
    end = (store["start"] + store["change"]).transpose("query", "output").values
    sums = (store["start"] + store["explained"]).transpose("query", "output").values
    logs, other = (_log_softmax(values) for values in (end, sums))
    kl = (np.exp(logs) * (logs - other)).sum(1)
    return found | {"agreement": float((end.argmax(1) == sums.argmax(1)).mean()), "kl": float(kl.mean())}


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
