"""Training records of large files on disk: made of the files once, in one go through them, and read a few at a time.

    KEY/records.bin     each record but its id, as a JSON list (`data.flat`)
    KEY/ids.bin         their ids
    KEY/hashes.npy      hashes of the ids in ascending order [N] uint64; order.npy: whose they are [N] int64
    KEY/characters.npy  lengths of their texts [N] int32
    KEY/note.json       rows that were left out
    KEY/checksums.json  digests of all that (`runtime.seal`)

KEY is a fingerprint of all that decides the records: the files' bytes, how they are read, and the code that does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.data.files import kind_of
from tdaexp.data.flat import FlatTexts, Writer
from tdaexp.data.lazy import AT_ONCE, Lazy
from tdaexp.data.pieces import SOURCE
from tdaexp.data.records import Corpus, Place, Record, Skipped
from tdaexp.data.tables import tell_bad
from tdaexp.data.token_records import TokenRecords
from tdaexp.runtime import stop
from tdaexp.runtime.cache import entry
from tdaexp.runtime.code import Work
from tdaexp.runtime.digests import digest
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import mended_folder, write_json

log = logging.getLogger(__name__)


class RecordStore(Lazy[Record]):
    """Records [N] in a folder, and the names of the files (`sources`) that they were read from."""

    def __init__(self, path: Path, sources: Sequence[str]) -> None:
        self.path, self._sources = path, list(sources)
        self.ids, self._rest = FlatTexts(path / "ids"), FlatTexts(path / "records")
        self._note = json.loads((path / "note.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.ids)

    def one(self, row: int) -> Record:
        """The record of a number."""
        return self._record(self.ids.one(row), self._rest.one(row))

    def some(self, rows: range) -> list[Record]:
        """Those of some numbers."""
        return [self._record(*one) for one in zip(self.ids.some(rows), self._rest.some(rows), strict=True)]

    def _record(self, name: str, rest: str) -> Record:
        prompt, completion, said, meta, *place = json.loads(rest)
        turns = tuple((role, text) for role, text in said)
        return Record(name, prompt, completion, meta=meta, where=self._place(*place), said=turns)

    def _place(self, file: int, row: int) -> Place:
        return Place(self._sources[file], row)

    @cached_property
    def names(self) -> Names:
        """The ids, by which records are found."""
        hashes, order = (np.load(self.path / f"{name}.npy", mmap_mode="r") for name in ("hashes", "order"))
        return Names(self.ids, hashes, order)

    @property
    def characters(self) -> np.ndarray:
        """How many characters each record's text has [N]."""
        found: np.ndarray = np.load(self.path / "characters.npy")
        return found

    @property
    def sourced(self) -> bool:
        """Whether a record says where it comes from."""
        return bool(self._note["sourced"])

    @property
    def skipped(self) -> list[Skipped]:
        """The rows that were left out."""
        return [Skipped(self._place(file, row), why) for file, row, why in self._note["skipped"]]


@dataclass(frozen=True)
class Names(Collection[str]):
    """Ids, and hashes of them in ascending order with whose they are: 16 bytes for each, mapped."""

    ids: Sequence[str]
    hashes: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.place(name) is not None

    def place(self, name: str) -> int | None:
        """The number of the record of this id; None where there is none."""
        wanted = np.uint64(_hash(name))
        start, stop = (int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right"))
        return next((int(row) for row in self.order[start:stop] if self.ids[int(row)] == name), None)

    def repeated(self) -> tuple[int, int] | None:
        """The first record whose id another one has before it, behind that one; None where all ids are distinct."""
        equal = np.flatnonzero(self.hashes[1:] == self.hashes[:-1])
        pairs = [(int(self.order[k]), int(self.order[k + 1])) for k in equal]
        return min(
            (pair for pair in pairs if self.ids[pair[0]] == self.ids[pair[1]]), key=lambda it: it[1], default=None
        )


class StoredCorpus(Corpus):
    """A corpus whose training records are in a store, or in a file of tokens; their ids are known to be distinct."""

    train: RecordStore | TokenRecords  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Refuse repeated ids of questions, and a truth that is not in the training set."""
        named = {source for records in self.queries.values() for one in records for source in one.truth}
        places = sorted({place for name in named if (place := self.train.names.place(name)) is not None})
        Corpus([self.train[place] for place in places or [0]], self.queries)


def kept_records(
    cache: Path,
    files: Sequence[Path],
    sources: Sequence[str],
    read: Callable[[], Iterable[Record | Skipped]],
    skip_bad: bool,
    decide: Sequence[Any],
    *,
    by: Work,
) -> RecordStore:
    """The records that `by` reads from `files` as `decide` says: from the cache, which is filled where it has none.

    `sources` are the files as messages call them. A damaged store is named and made again. Errors (UserError): rows
    that cannot be read, a repeated id, a file that changes meanwhile.
    """
    known = [(kind_of(file), digest(file)) for file in files]
    path = entry(cache, "records", known, *decide, skip_bad, by=[by])
    made: list[Path] = []

    def build(folder: Path) -> None:
        made.append(folder)
        _write(folder, sources, read(), skip_bad)
        for file, (_, before) in zip(files, known, strict=True):
            if digest(file) != before:
                raise UserError(f"{file}: changed while it was read; run again when it is at rest")

    found = RecordStore(mended_folder(path, build), sources)
    if not made:
        log.info("%s training records, as they were read before (%s)", f"{len(found):,}", path)
        tell_bad(found.skipped, len(found) + len(found.skipped), skip_bad)
    return found


def _write(folder: Path, sources: Sequence[str], records: Iterable[Record | Skipped], skip_bad: bool) -> None:
    numbers = {name: number for number, name in enumerate(sources)}
    skipped: list[Skipped] = []
    hashes, characters, sourced = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], False
    with Writer(folder / "ids") as ids, Writer(folder / "records") as rest:
        for some in _pieces(records, skipped):
            ids.texts([one.id for one in some])
            rest.texts([_plain(one, numbers) for one in some])
            hashes.append(np.array([_hash(one.id) for one in some], dtype=np.uint64))
            characters.append(np.array([len(one.text) for one in some], dtype=np.int32))
            sourced |= any(SOURCE in one.meta for one in some)
    every = np.concatenate(hashes)
    tell_bad(skipped, len(every) + len(skipped), skip_bad)
    order = np.argsort(every, kind="stable")  # of equal ones the earlier first
    for name, values in (("hashes", every[order]), ("order", order), ("characters", np.concatenate(characters))):
        np.save(folder / f"{name}.npy", values)
    left = [[numbers[where.file], where.row, why] for where, why in skipped]
    write_json(folder / "note.json", {"sourced": sourced, "skipped": left})
    found = RecordStore(folder, sources)
    twice = found.names.repeated()
    if twice is not None:
        Corpus([found[row] for row in twice], {})  # says so


def _pieces(records: Iterable[Record | Skipped], skipped: list[Skipped]) -> Iterator[list[Record]]:
    """Some of the records at a time; what could not be read is put aside."""
    some: list[Record] = []
    for one in records:
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        some.append(one)
        if len(some) == AT_ONCE:
            stop.check()
            yield some
            some = []
    if some:
        yield some


def _plain(record: Record, numbers: Mapping[str, int]) -> str:
    if record.where is None or record.truth or record.rejected is not None:
        raise ValueError("no training record of a file")
    parts = [record.prompt, record.completion, record.said, record.meta, numbers[record.where.file], record.where.row]
    return json.dumps(parts, ensure_ascii=False)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
