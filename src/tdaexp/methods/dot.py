"""Gradient dot product: as `full`, without dividing by the gradients' norms (TracIn at one checkpoint).

Source: Pruthi et al. 2020, equation 1 at the final checkpoint with unit learning rate. Sign: positive = a gradient
step on the training example lowers the query's loss. Fills query, train and component; additive over components.
Cost: as `full`, whose stored products it shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from tdaexp.methods.full import Full
from tdaexp.problem import Problem


@dataclass
class Dot(Full):
    """Keys: as for `full`."""

    @property
    def linear(self) -> bool:
        """Products with the query's gradient."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Component dot products of all candidate pairs."""
        return _without_norms(super().attribute(problem))

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """The stored dot products."""
        return _without_norms(super().from_products(products))


def _without_norms(products: xr.Dataset) -> xr.Dataset:
    return products.drop_vars(["query_sq", "train_sq"]).assign_attrs(normalise="none")
