"""How rows are kept: as they are computed, or in 16 or 8 bits with a scale for each row and component.

The scale belongs to a row's entries of one component, so that a component with small gradients keeps as many digits
as another, and an example with small gradients as many as its neighbours. In 16 bits it is a power of two: entries
stay within 2 of zero, where float16 has 11 bits, and dividing by it loses nothing. In 8 bits the largest entry is 127.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime.errors import unknown

KINDS = ("float16", "int8")
LEVELS = 127
LEAST = 2.0**-126
"""The least scale: float32's smallest number of full precision."""


def check_storage(storage: str | None) -> None:
    """Refuse what no row is kept as; None: as it was computed."""
    if storage is not None and storage not in KINDS:
        raise unknown("storage", storage, (*KINDS, "null"), "method.storage")


def packed(rows: Tensor, columns: Sequence[slice], storage: str | None) -> tuple[Tensor, Tensor | None]:
    """Rows [n, D] float32 or float64 as they are kept, and the scale [n, K] float32 of each one's `columns` [K].

    None in place of the scales where rows stay as they are.
    """
    if storage is None:
        return rows, None
    largest = torch.stack([rows[:, column].abs().amax(1) for column in columns], dim=1).float()
    scale = largest / LEVELS if storage == "int8" else _power_of_two(largest)
    scale = torch.where(largest > 0, scale.clamp(min=LEAST), 1.0)
    kept = torch.empty(rows.shape, dtype=getattr(torch, storage))
    for number, column in enumerate(columns):
        part = rows[:, column] / scale[:, number, None]
        kept[:, column] = part.round_().to(torch.int8) if storage == "int8" else part.to(torch.float16)
    return kept, scale


def unpacked(kept: Tensor, scale: Tensor | None, columns: Sequence[slice]) -> Tensor:
    """Rows [n, D] in float32, or as they are where there is no scale, on the device of what is `kept`."""
    if scale is None:
        return kept
    rows = kept.float()
    if len({column.stop - column.start for column in columns}) == 1:  # one pass over the rows
        rows.view(len(rows), len(columns), -1).mul_(scale[:, :, None])
        return rows
    for number, column in enumerate(columns):
        rows[:, column] *= scale[:, number, None]
    return rows


def _power_of_two(largest: Tensor) -> Tensor:
    """The largest one that is not above; exactly, as torch's own powers need not be."""
    return torch.from_numpy(np.ldexp(np.float32(1), torch.frexp(largest).exponent.numpy() - 1))


def row_bytes(width: int, components: int, storage: str | None, computed: int) -> int:
    """Bytes of a row of so many entries; `computed`: bytes of an entry as it was computed."""
    if storage is None:
        return width * computed
    return width * (1 if storage == "int8" else 2) + 4 * components
