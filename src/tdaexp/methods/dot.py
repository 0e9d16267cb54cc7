"""Gradient dot product: as `full`, without dividing by the gradients' norms (TracIn at one checkpoint).

Source: Pruthi et al. 2020, equation 1 at the final checkpoint with unit learning rate:

    s(z, q) = ∇ℓ(q)·∇ℓ(z)

Sign: positive = a gradient step on the training example lowers the query's loss. Fills query, train and component;
additive over components. Cost: as `full`, whose stored products it shares.

Scale: the fall of the query's loss in nats, per unit of learning rate, by one step of plain gradient descent on the
example. Limits: examples of large gradients come first for every query (`relative=true` divides by their norm); steps
of AdamW are scaled otherwise (`precondition=adamw`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.methods.full import Full
from tdaexp.problem import Problem
from tdaexp.runtime.rows import Rows, lazy
from tdaexp.selection.parts import metric_note, part_note, with_notes


@dataclass
class Dot(Full):
    """Keys: as for `full`, and `relative` (divide by the norm of the training example's gradient, which is RelatIF in
    this metric: Barshan et al. 2020).
    """

    relative: bool = False

    @property
    def label(self) -> str:
        """Name, the part of the model if it is not the whole, the metric, and whether it is relative."""
        notes = [part_note(self.part, self.components, "all"), metric_note(self.precondition)]
        return with_notes(self.name, [*notes, "relative" if self.relative else ""])

    @property
    def of_itself(self) -> Method | None:
        """The dot product."""
        return replace(self, relative=False)

    @property
    def linear(self) -> bool:
        """Products with the query's gradient."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Component dot products of all candidate pairs."""
        return self._without_norms(super().attribute(problem))

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """The stored dot products."""
        return self._without_norms(super().from_products(products))

    def _without_norms(self, products: xr.Dataset) -> xr.Dataset:
        dots = products.drop_vars(["query_sq", "train_sq"]).assign_attrs(normalise="none")
        if not self.relative:
            return dots
        values, squares = (products[name].variable for name in ("influence", "train_sq"))

        def relative(rows: np.ndarray) -> np.ndarray:
            found, own = values.isel(query=rows).values, squares.isel(query=rows).values.astype(np.float64)
            norms = np.sqrt(own.sum(2, keepdims=True))
            divided: np.ndarray = np.divide(found, norms, out=0.0 * found, where=norms > 0)  # NaN: there is no pair
            return divided

        return dots.assign(influence=(values.dims, lazy(Rows(values.shape, np.float64, relative))))
