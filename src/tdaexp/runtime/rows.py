"""Arrays whose rows are read, or computed, when they are asked for: what is too large to lie in memory whole.

As with zarr's arrays, indexing gives numpy's: `rows[3:5]`, `rows[places]`, `rows[:]`; so does `np.asarray(rows)`.
`lazy` makes of them what xarray takes for an array: a data set's `isel` reads nothing, `values` reads what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from xarray.backends import BackendArray
from xarray.core import indexing

BLOCK_BYTES = 1 << 24
"""Of all that is read at a time of an answer of many pairs: small beside what a block of scoring takes."""


class Rows:
    """An array of a known shape and type; `read` gives the rows [n, ...] of some places [n] along the first axis."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self.shape, self.dtype, self.ndim, self._read = shape, np.dtype(dtype), len(shape), read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """What numpy gives for a key that, beside slices, has at most one number or list of places for each axis."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        places = np.arange(len(self))[first]
        values = np.asarray(self._read(np.atleast_1d(places)), dtype=self.dtype)
        axis = places.ndim
        values = values if axis else values[0]
        for one in rest:  # one after the other: each axis for itself
            values = values[(slice(None),) * axis + (one,)]
            axis += not isinstance(one, (int, np.integer))
        return values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def map(self, change: Callable[[np.ndarray, np.ndarray], np.ndarray], dtype: DTypeLike | None = None) -> Rows:
        """The rows as `change` gives them for their values [n, ...] and places [n]; their shape stays."""
        return Rows(self.shape, dtype or self.dtype, lambda places: change(self._read(places), places))

    def at(self, places: np.ndarray) -> Rows:
        """The rows at some places [n], in their order."""
        return Rows((len(places), *self.shape[1:]), self.dtype, lambda chosen: self._read(places[chosen]))


def rows_of(values: np.ndarray | Rows) -> Rows:
    """An array as `Rows`."""
    return values if isinstance(values, Rows) else Rows(values.shape, values.dtype, values.__getitem__)


def runs(count: int, row_bytes: float) -> Iterator[slice]:
    """Cuts `count` rows of `row_bytes` each into runs of at most `BLOCK_BYTES`; one run where there is no row."""
    step = max(1, int(BLOCK_BYTES // max(row_bytes, 1)))
    for start in range(0, max(count, 1), step):
        yield slice(start, min(start + step, count))


def lazy(rows: Rows) -> Any:
    """What xarray takes for an array: nothing is read before values are asked for, which are then kept."""
    return indexing.MemoryCachedArray(indexing.LazilyIndexedArray(_Backend(rows)))  # type: ignore[no-untyped-call]


class _Backend(BackendArray):
    def __init__(self, rows: Rows) -> None:
        self.shape, self.dtype, self.rows = rows.shape, rows.dtype, rows

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        outer = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, outer, self.rows.__getitem__)
