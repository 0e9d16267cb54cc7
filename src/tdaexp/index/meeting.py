"""How queries meet the rows of an index: what a score is beside the product of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.influence import EPSILON

Norms = Callable[[Tensor], Tensor]
"""Of rows [n, D] what their products are divided by [n], float64."""
Change = Callable[[np.ndarray], np.ndarray]
"""Of rows [n, D] what is met in their place [n, D]."""


def euclidean(rows: Tensor) -> Tensor:
    """Norms [n] of rows [n, D]."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return found.double()


@dataclass(frozen=True)
class Meeting:
    """Rows of queries [Q, D] are met with those of the index, or with what `change` makes of these. Where there are
    `norms` the products are divided by those of both sides, as `influence.cosine` does, and where there are `weights`
    [N] those of an example are multiplied by its own.

    `settings`: plain data that `change` rests on, but no query.
    """

    norms: Norms | None = None
    change: Change | None = None
    weights: Callable[[], np.ndarray] | None = None
    settings: Sequence[Any] = ()

    @cached_property
    def own(self) -> np.ndarray | None:
        """The weights, read once."""
        return None if self.weights is None else self.weights()

    def changed(self, rows: Tensor) -> Tensor:
        """Rows [n, D] of the index as queries meet them."""
        if self.change is None:
            return rows
        return torch.from_numpy(self.change(rows.cpu().numpy())).to(rows.device)

    def scores(self, queries: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        """Scores [Q, n] float64 of `changed` rows, those of the examples `numbers` [n]."""
        found = (queries @ rows.T).double()
        if self.norms is not None:
            found /= self.norms(queries)[:, None] * self.norms(rows) + EPSILON
        if self.own is not None:
            found *= torch.from_numpy(self.own[numbers.cpu().numpy()]).to(found.device)
        return found

    def vectors(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """`changed` rows [n, D] of the examples `numbers`, whose products with a query are in proportion to scores."""
        found = rows
        if self.norms is not None:
            found = found / (self.norms(found)[:, None].to(found.dtype) + EPSILON)
        if self.own is not None:
            found = found * torch.from_numpy(self.own[numbers.cpu().numpy()]).to(found.device, found.dtype)[:, None]
        return found
