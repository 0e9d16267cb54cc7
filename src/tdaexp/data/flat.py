"""Files of numbers, and of texts, that are written one after the other and read a few at a time.

    NAME.bin   the numbers, or the texts' bytes (UTF-8)
    NAME.npy   where each row ends [N] int64, counted in numbers, or in bytes

Rows are read with `pread` and not mapped: what was read once does not stay in the process's memory. Of the rows
themselves eight bytes each are mapped.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from tdaexp.data.lazy import Lazy
from tdaexp.runtime.errors import UserError


class Flat:
    """A file of numbers of one type."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        self._open()

    def __reduce__(self) -> tuple[type[Flat], tuple[Path, np.dtype[Any]]]:
        """A copy, here or in another process, opens the file anew."""
        return Flat, (self.path, self.dtype)

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return os.fstat(self._file).st_size // self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """The numbers from `start` to `stop`. Errors (UserError): the file ends before."""
        size, parts, place = (stop - start) * self.dtype.itemsize, [], start * self.dtype.itemsize
        while size:
            part = os.pread(self._file, size, place)  # gives 2 GB at most
            if not part:
                raise UserError(f"{self.path}: ends before its number {stop:,}; it was changed after it was written")
            parts.append(part)
            size, place = size - len(part), place + len(part)
        return np.frombuffer(b"".join(parts), dtype=self.dtype)


def ends_of(stem: Path) -> np.ndarray:
    """Where the rows of a file end [N], mapped."""
    found: np.ndarray = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    return found


def span(ends: np.ndarray, row: int) -> tuple[int, int]:
    """Where a row begins and ends."""
    return (int(ends[row - 1]) if row else 0), int(ends[row])


class FlatTexts(Lazy[str]):
    """The texts [N] of a file."""

    def __init__(self, stem: Path) -> None:
        self._bytes, self.ends = Flat(stem.with_suffix(".bin"), np.uint8), ends_of(stem)

    def __len__(self) -> int:
        return len(self.ends)

    def one(self, row: int) -> str:
        """The text of a number."""
        return self._bytes.read(*span(self.ends, row)).tobytes().decode()

    def some(self, rows: range) -> list[str]:
        """Those of some numbers; in one go where they follow each other."""
        if not rows or rows.step != 1:
            return super().some(rows)
        start, stop = span(self.ends, rows[0])[0], int(self.ends[rows[-1]])
        whole, cuts = self._bytes.read(start, stop).tobytes(), self.ends[rows[0] : rows[-1] + 1] - start
        return [whole[a:b].decode() for a, b in zip([0, *cuts[:-1].tolist()], cuts.tolist(), strict=True)]


class Writer:
    """Writes rows of numbers, or of texts, to `stem`.bin; when the block ends, where they end too."""

    def __init__(self, stem: Path) -> None:
        self.stem = stem
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> Writer:
        self._file: IO[bytes] = self.stem.with_suffix(".bin").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
            np.save(self.stem.with_suffix(".npy"), np.cumsum(lengths))

    def numbers(self, rows: Sequence[np.ndarray]) -> None:
        """Write some rows, all of one type."""
        self._file.write(np.concatenate(rows).tobytes())
        self._lengths.append(np.array([len(row) for row in rows], dtype=np.int64))

    def texts(self, rows: Sequence[str]) -> None:
        """Write some rows."""
        self.numbers([np.frombuffer(row.encode(), np.uint8) for row in rows])
