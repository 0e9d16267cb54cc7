"""Finds NaN and Inf in activations and output gradients while a batch runs, and names where they began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdaexp.gradients.factors import LinearFactors
from tdaexp.runtime.errors import UserError


class Monitor:
    """Watches the layers of one batch, which arrive from the loss downwards."""

    def __init__(self, ids: Sequence[str]) -> None:
        """`ids` [B] name the batch's examples."""
        self.ids = ids
        self._faults: list[tuple[str, str, int, float]] = []

    def passes(self, names: list[str], factors: list[LinearFactors]) -> bool:
        """Whether all numbers are finite; what is not is remembered for `check`."""
        checked = [("activation", names[0], factors[0].inputs)]
        checked += [("output gradient", name, one.deltas) for name, one in zip(names, factors, strict=True)]
        clean = True
        for what, name, values in checked:
            # A sum is finite unless an entry is not, or it overflows itself: then the entries are looked at.
            if not bool(torch.isfinite(values.sum())):
                found = _first_fault(values)
                if found is not None:
                    clean = False
                    self._faults.append((what, name, *found))
        return clean

    def check(self) -> None:
        """Errors (UserError): the lowest layer whose activation is faulty, else the highest one whose gradient is."""
        if not self._faults:
            return
        activations = [fault for fault in self._faults if fault[0] == "activation"]
        what, name, row, value = activations[-1] if activations else self._faults[0]
        raise UserError(
            f"layer '{name}': an {what} of example '{self.ids[row]}' is {value}; check the checkpoint and the example, "
            "or try trainer.precision=float32"
        )


def _first_fault(values: Tensor) -> tuple[int, float] | None:
    """Example and value of the first entry that is not finite."""
    bad = ~torch.isfinite(values)
    rows = bad.flatten(1).any(1).nonzero()
    if not len(rows):
        return None
    row = int(rows[0])
    return row, float(values[row][bad[row]][0])
