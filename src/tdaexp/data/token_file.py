"""Flat files of token numbers, as training programs keep a tokenised corpus, and where the documents in them end.

    NAME.bin      the tokens of all documents one after the other, uint16 or uint32, little-endian
    NAME.idx.npy  where each document ends [N] int64, counted in tokens: the first begins at 0, each other one where the
                  one before ends, the last ends with the file

Without such ends a document ends with the tokenizer's end-of-text token, which is part of it; behind the last one there
may be one more document. The file stays where it is: tokens are read from it a few at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.data.flat import Flat, ends_of, span
from tdaexp.runtime.cache import entry
from tdaexp.runtime.digests import digest
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import mended_folder
from tdaexp.runtime.reading import reason

ENDING, SIDECAR = ".bin", ".idx.npy"
TYPES = {"uint16": "<u2", "uint32": "<u4"}
AT_ONCE = 1 << 22
"""Tokens that are looked through together."""
CONVENTION = "offsets are where each document ends, counted in tokens [N] int64"


@dataclass(frozen=True)
class Documents:
    """N documents in a file of tokens of one type; `ends` [N] int64 may be mapped. `content` says what they are."""

    path: Path
    dtype: np.dtype
    ends: np.ndarray
    content: list[Any]

    def __len__(self) -> int:
        return len(self.ends)

    def first(self, count: int | None) -> Documents:
        """The first so many of them (None: all)."""
        return Documents(self.path, self.dtype, self.ends[:count], [*self.content, count])

    @property
    def lengths(self) -> np.ndarray:
        """Token counts [N]."""
        return np.diff(self.ends, prepend=0)

    def read(self, row: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The tokens of a document [T] int64, from `start` to `stop` (None: to its end)."""
        begin, end = span(self.ends, row)
        return self._tokens.read(begin + start, end if stop is None else begin + stop).astype(np.int64)

    def check_tokens(self, known: int) -> None:
        """Refuse (UserError) token numbers that a model does not embed, which knows those below `known`."""
        total = int(self.ends[-1])
        for start in range(0, total, AT_ONCE):
            some = self._tokens.read(start, min(total, start + AT_ONCE))
            if int(some.max()) >= known:
                place = int(np.argmax(some >= known))
                row = int(np.searchsorted(self.ends, start + place, side="right"))
                raise UserError(
                    f"{self.path}: document {row} has the token {int(some[place])}, but the model embeds 0 to "
                    f"{known - 1}; name the model that the file was written for, or its type "
                    f"(dataset.token_type={' or '.join(TYPES)})"
                )

    @cached_property
    def _tokens(self) -> Flat:
        return Flat(self.path, self.dtype)


def documents_of(
    cache: Path, path: Path, offsets: Path | None, token_type: str | None, known: int, eos: int | None
) -> Documents:
    """The documents of a file of tokens, by `offsets`, a file beside it, or the end-of-text token `eos`.

    `token_type` None: uint16 where the model knows (`known`) no more tokens than that has numbers; a file of uint32 is
    refused then. Ends that are looked for are kept in `cache`. Errors (UserError): the files cannot be read or do not
    belong together, a document has nothing to predict.
    """
    dtype = np.dtype(TYPES[token_type or ("uint16" if known <= 1 << 16 else "uint32")])
    count = _count(path, dtype)
    if token_type is None:
        _check_halves(path, dtype, count)
    file = offsets or sidecar_of(path)
    if file is not None:
        ends, decides = _checked(file, _loaded(file), path, count), digest(file)
        return Documents(path, dtype, ends, [digest(path), dtype.str, decides])
    if eos is None:
        raise UserError(
            f"{path}: the model's tokenizer has no end-of-text token that documents could end with; name where they "
            f"end (dataset.offsets=FILE.npy: {CONVENTION})"
        )
    before = digest(path)

    def build(folder: Path) -> None:
        np.save(folder / "ends.npy", _ends_by(eos, path, dtype, count))
        if digest(path) != before:
            raise UserError(f"{path}: changed while it was read; run again when it is at rest")

    folder = mended_folder(entry(cache, "documents", before, dtype.str, eos, by=[documents_of]), build)
    return Documents(path, dtype, ends_of(folder / "ends"), [before, dtype.str, eos])


def sidecar_of(path: Path) -> Path | None:
    """The file of ends beside a file of tokens; None where there is none."""
    if path.suffix != ENDING:
        return None
    file = path.with_suffix(SIDECAR)
    return file if file.exists() else None


def _count(path: Path, dtype: np.dtype) -> int:
    """How many tokens a file has."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of tokens; relative paths start at the folder the command runs in")
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path}: the file holds no token; give a file with at least one document")
    if size % dtype.itemsize:
        raise UserError(
            f"{path}: has {size:,} bytes, no multiple of the {dtype.itemsize} of a {dtype.name}; it was cut off, or is "
            f"of another type (dataset.token_type={' or '.join(TYPES)})"
        )
    return size // dtype.itemsize


def _check_halves(path: Path, dtype: np.dtype, count: int) -> None:
    """Refuse (UserError) a file of uint32 that was taken for one of uint16: its every other number is 0."""
    pairs = min(count, AT_ONCE) // 2
    some = Flat(path, dtype).read(0, 2 * pairs)
    if dtype.itemsize == 2 and count % 2 == 0 and not some[1::2].any() and some.any():
        raise UserError(
            f"{path}: every other number is 0 where it is read as uint16, as in a file of uint32; say which it is "
            "(dataset.token_type=uint32 or uint16)"
        )


def _loaded(file: Path) -> np.ndarray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: no array can be read ({reason(error)}); {CONVENTION}, by numpy.save") from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype != np.int64 or not len(found):
        told = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise UserError(f"{file}: holds {told}; {CONVENTION}")
    return found


def _checked(file: Path, ends: np.ndarray, path: Path, count: int) -> np.ndarray:
    """Ends that fit a file of so many tokens."""
    lengths = np.diff(ends, prepend=0)
    row = int(np.argmin(lengths > 0))
    if lengths[row] < 0:
        raise UserError(
            f"{file}: is not ascending: document {row} ends at {int(ends[row]):,}, before it begins; {CONVENTION}"
        )
    if lengths[row] == 0:
        raise UserError(f"{file}: document {row} has no token; {CONVENTION}, not where it begins; leave empty ones out")
    beyond = int(np.searchsorted(ends, count, side="right"))
    if beyond < len(ends):
        raise UserError(
            f"{file}: document {beyond} ends at token {int(ends[beyond]):,}, beyond the {count:,} of {path}; "
            f"{CONVENTION}, not in bytes; or the tokens are of another type (dataset.token_type)"
        )
    if ends[-1] < count:
        raise UserError(
            f"{file}: the last document ends at token {int(ends[-1]):,}, and {path} has {count:,}; {CONVENTION}, of "
            "all documents"
        )
    return _predictable(ends, str(file))


def _ends_by(eos: int, path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Where documents end that a token closes."""
    tokens = Flat(path, dtype)
    found = [
        np.flatnonzero(tokens.read(start, min(count, start + AT_ONCE)) == eos) + start + 1
        for start in range(0, count, AT_ONCE)
    ]
    ends = np.concatenate(found).astype(np.int64)
    if not len(ends):
        raise UserError(
            f"{path}: has no end-of-text token ({eos}) of the model's tokenizer, which its documents could end with; "
            f"name where they end (dataset.offsets=FILE.npy: {CONVENTION}), the model that it was written for, or its "
            f"type (dataset.token_type={' or '.join(TYPES)})"
        )
    return _predictable(ends if ends[-1] == count else np.append(ends, count), str(path))


def _predictable(ends: np.ndarray, where: str) -> np.ndarray:
    lengths = np.diff(ends, prepend=0)
    if lengths.min() < 2:
        row = int(np.argmax(lengths < 2))
        raise UserError(
            f"{where}: document {row} has a single token, which leaves nothing to predict; write the file without it"
        )
    return ends
