"""Finds NaN and Inf in activations and output gradients while a batch runs, and names where they began."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.factors import LinearFactors
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.errors import UserError


class Monitor:
    """Watches the layers of one batch, which arrive from the loss downwards: sums by example, to be looked at later."""

    def __init__(self, ids: Sequence[str]) -> None:
        """`ids` [B] name the batch's examples."""
        self.ids = ids
        self._places: list[tuple[str, str]] = []
        self._sums: list[Tensor] = []

    def watch(self, names: list[str], factors: list[LinearFactors]) -> None:
        """Note the sums of what layers with one input hold."""
        self._note("activation", names[0], factors[0].inputs)
        for name, one in zip(names, factors, strict=True):
            self._note("output gradient", name, one.deltas)

    def _note(self, what: str, name: str, values: Tensor) -> None:
        # A sum is finite unless an entry is not, or it overflows itself: then so do the squares that are added up.
        self._places.append((what, name))
        self._sums.append(values.sum((1, 2), dtype=accumulation_dtype(values.dtype)))

    def sums(self) -> Tensor:
        """What `check` is to be given, [P, B]."""
        return torch.stack(self._sums)

    def check(self, sums: np.ndarray) -> None:
        """Errors (UserError): the lowest layer whose activation is faulty, else the highest one whose gradient is."""
        faults = np.flatnonzero(~np.isfinite(sums).all(1)).tolist()
        if not faults:
            return
        activations = [place for place in faults if self._places[place][0] == "activation"]
        place = activations[-1] if activations else faults[0]
        (what, name), row = self._places[place], int(np.flatnonzero(~np.isfinite(sums[place]))[0])
        raise UserError(
            f"layer '{name}': an {what} of example '{self.ids[row]}' is {sums[place, row]}; check the checkpoint and "
            "the example, or try trainer.precision=float32"
        )
