"""Tokenised training examples on disk: made of stored records once, some at a time, and read a few at a time.

    KEY/tokens.bin      the tokens of all examples (`data.flat`), uint16 where the model's vocabulary fits, else uint32
    KEY/mask.bin        their loss masks, a bit for each token, the first the highest of a byte
    KEY/documents.npy   where texts were cut: the number of each piece's record [N] int64
    KEY/ids.bin         where texts were cut: the pieces' ids
    KEY/texts.bin       where texts were cut: the pieces' texts, empty where a piece is the whole record
    KEY/note.json       the type of the tokens, and fingerprints: of all examples, and of each `BLOCK` of them
    KEY/checksums.json  digests of all that (`runtime.seal`)

KEY is a fingerprint of the records, the model with its tokenizer, how texts become tokens, and the code that does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tdaexp.data.examples import Example, Examples
from tdaexp.data.flat import Flat, FlatTexts, ends_of, span
from tdaexp.data.record_store import RecordStore
from tdaexp.data.token_records import TokenRecords

BLOCK = 1024
"""Examples whose fingerprint is kept: those of a block of an index, where rows are not long."""


class Store(Protocol):
    """Examples [N] by number: where each one's tokens end (`ends` [N]), the numbers of their records (`documents` [N]),
    and whether texts were `cut` into pieces.
    """

    @property
    def records(self) -> RecordStore | TokenRecords:
        """What they are of."""

    @property
    def ids(self) -> Sequence[str]:
        """Their ids."""

    ends: np.ndarray
    documents: np.ndarray
    cut: bool

    def example(self, row: int) -> Example:
        """The example of a number."""

    def fingerprint(self, rows: range) -> str | None:
        """That of some examples that follow each other, where it is kept."""


class ExampleStore:
    """Examples [N] in a folder, by number; `records` has their texts."""

    def __init__(self, path: Path, records: RecordStore) -> None:
        self.path, self.records = path, records
        self.note = note_in(path)
        self.ends = ends_of(path / "tokens")
        self._tokens, self._mask = Flat(path / "tokens.bin", self.note["dtype"]), Flat(path / "mask.bin", np.uint8)
        self.cut = (path / "documents.npy").exists()
        self.documents = np.load(path / "documents.npy", mmap_mode="r") if self.cut else np.arange(len(self.ends))
        self.ids = FlatTexts(path / "ids") if self.cut else records.ids

    @cached_property
    def _texts(self) -> FlatTexts:
        return FlatTexts(self.path / "texts")

    def example(self, row: int) -> Example:
        """The example of a number."""
        start, stop = span(self.ends, row)
        bits = np.unpackbits(self._mask.read(start // 8, -(-stop // 8)))[start % 8 :][: stop - start]
        tokens, document = self._tokens.read(start, stop).astype(np.int64), self.records[int(self.documents[row])]
        if not self.cut:
            return Example(document.id, tokens, bits.astype(bool), document.text, prompt=document.prompt)
        name, text, prompt = self.ids[row], document.text, document.prompt
        if name != document.id:
            text, prompt = self._texts[row], ""
        return Example(name, tokens, bits.astype(bool), text, document.id, prompt=prompt)

    def fingerprint(self, rows: range) -> str | None:
        """That of some examples that follow each other, where it is kept."""
        return fingerprint_of(self.note, rows, len(self.ends))


def note_in(path: Path) -> dict[str, Any]:
    """What is noted of a store of examples."""
    found: dict[str, Any] = json.loads((path / "note.json").read_text(encoding="utf-8"))
    return found


def fingerprint_of(note: dict[str, Any], rows: range, count: int) -> str | None:
    """The fingerprint of `rows` of `count` examples, where it is noted."""
    if rows == range(count):
        return str(note["fingerprint"])
    whole = rows.start % BLOCK == 0 and rows.stop == min(rows.start + BLOCK, count) and rows.step == 1
    return str(note["blocks"][rows.start // BLOCK]) if whole else None


class _Fingerprint:
    """`Examples.fingerprint` of examples that are met one after the other."""

    def __init__(self) -> None:
        self.count, self._digest = 0, hashlib.blake2b(b"[[", digest_size=8)

    def add(self, example: Example) -> None:
        """Meet one, as `runtime.fingerprint` writes it down."""
        arrays = [
            ["array", str(one.dtype), list(one.shape), hashlib.blake2b(one.tobytes()).hexdigest()]
            for one in (example.tokens, example.loss_mask)
        ]
        self._digest.update((", " if self.count else "").encode() + json.dumps([example.id, *arrays]).encode())
        self.count += 1

    def value(self) -> str:
        """Of those that were met."""
        whole = self._digest.copy()
        whole.update(b"]]")
        return whole.hexdigest()


class Fingerprints:
    """Those of examples that are met one after the other, and of each `BLOCK` of them."""

    def __init__(self) -> None:
        self._whole, self._blocks = _Fingerprint(), [_Fingerprint()]

    def add(self, example: Example) -> None:
        """Meet one."""
        if self._blocks[-1].count == BLOCK:
            self._blocks.append(_Fingerprint())
        self._whole.add(example)
        self._blocks[-1].add(example)

    def note(self) -> dict[str, Any]:
        """Of all that were met."""
        return {"fingerprint": self._whole.value(), "blocks": [one.value() for one in self._blocks]}


class StoredExamples(Examples):
    """Examples that are in a store, all or those of some numbers: each is read when it is asked for.

    Everything is as of examples in memory, bit for bit.
    """

    def __init__(self, store: Store, rows: range | np.ndarray | None = None) -> None:
        self.store, self.rows = store, range(len(store.ends)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return one example, or the examples of a slice."""
        some = self.rows[index]
        return StoredExamples(self.store, some) if isinstance(index, slice) else self.store.example(int(some))

    def __iter__(self) -> Iterator[Example]:
        return (self.store.example(int(row)) for row in self.rows)

    def select(self, indices: Sequence[int] | np.ndarray) -> StoredExamples:
        """The examples at `indices`, in that order."""
        places = np.asarray(indices, dtype=np.int64)
        if len(places) and places[0] >= 0 and (np.diff(places) == 1).all():  # as a block of an index is
            return StoredExamples(self.store, self.rows[int(places[0]) : int(places[-1]) + 1])
        return StoredExamples(self.store, np.asarray(self.rows)[places])

    @property
    def items(self) -> list[Example]:  # type: ignore[override]
        """All of them, in memory."""
        return list(self)

    @cached_property
    def ids(self) -> list[str]:
        """Ids in order, in memory: they are looked up one by one."""
        if isinstance(self.rows, range) and self.rows.step == 1:
            return list(self.store.ids[self.rows.start : self.rows.stop])
        return [self.store.ids[int(row)] for row in self.rows]

    @property
    def texts(self) -> list[str]:
        """The records' texts in order, in memory."""
        return [one.text for one in self]

    @property
    def prompts(self) -> list[str]:
        """The records' prompts in order, in memory."""
        return [one.prompt for one in self]

    @property
    def lengths(self) -> np.ndarray:
        """Token counts [N]."""
        rows, ends = np.asarray(self.rows, dtype=np.int64), self.store.ends
        found: np.ndarray = ends[rows] - np.where(rows > 0, ends[rows - 1], 0)
        return found

    @property
    def contrastive(self) -> bool:
        """No training record compares two answers."""
        return False

    def fingerprint(self) -> str:
        """Hash of ids, tokens and loss masks in order."""
        kept = self.store.fingerprint(self.rows) if isinstance(self.rows, range) else None
        return kept or Examples(self.items).fingerprint()
