"""Documents of a file of tokens as training examples: tokens as they are, cut off or in pieces; nothing is copied.

    KEY/note.json       fingerprints: of all examples, and of each `example_store.BLOCK` of them
    KEY/begun.npy       which documents begin with the bos token that the tokenizer puts before texts [N] bool
    KEY/checksums.json  digests of both (`runtime.seal`)

KEY is a fingerprint of the documents, the most tokens of an example, and the code. All tokens but the first carry loss.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.data.chunks import check_chunk
from tdaexp.data.encoding import begins_with
from tdaexp.data.example_store import Fingerprints, StoredExamples, fingerprint_of, note_in
from tdaexp.data.lazy import Lazy
from tdaexp.data.token_records import DecodedExample, TokenRecords
from tdaexp.runtime.cache import entry
from tdaexp.runtime.digests import digest
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import mended_folder, write_json
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)


class Cuts:
    """Where N documents of `lengths` are cut: at `longest` tokens, or into pieces of `chunk` (`data.chunks`).

    `begun` [N] says which of them begin with a bos token, which then begins each piece. M pieces: `documents` [M] are
    the numbers of their documents, `lengths` [M] their own.
    """

    def __init__(self, lengths: np.ndarray, longest: int, chunk: int | None, begun: np.ndarray) -> None:
        self.chunk, self._kept = chunk, begun.astype(np.int64)
        self._whole = np.minimum(lengths, longest) if chunk is None else lengths
        counts = np.ones(len(lengths), dtype=np.int64)
        if chunk is not None:
            counts = np.where(lengths > chunk, -(-(lengths - 1 - self._kept) // (chunk - 1 - self._kept)), 1)
        self.documents = np.repeat(np.arange(len(lengths)), counts)
        self._first, self._counts = np.cumsum(counts) - counts, counts
        self.lengths = self._whole[self.documents]
        if chunk is not None:
            kept, number = self._kept[self.documents], np.arange(len(self.documents)) - self._first[self.documents]
            rest = self.lengths - number * (chunk - 1 - kept)  # with the bos token before it
            self.lengths = np.minimum(rest, chunk)

    def __len__(self) -> int:
        return len(self.documents)

    def piece(self, row: int) -> tuple[int, int | None, int, int]:
        """Of a piece: its document, its number there from 1 (None: it is the whole), where it begins and ends.

        It begins behind a bos token where there is one.
        """
        document = int(self.documents[row])
        if self._counts[document] == 1:
            return document, None, 0, int(self._whole[document])
        kept, number = int(self._kept[document]), row - int(self._first[document])
        start = kept + number * (int(self.chunk or 0) - 1 - kept)
        return document, number + 1, start, start + int(self.lengths[row]) - kept

    def kept(self, document: int) -> int:
        """How many tokens of a document begin each of its pieces."""
        return int(self._kept[document])


class Names(Lazy[str]):
    """The ids of pieces: their document's, with the piece's number where there are several."""

    def __init__(self, cuts: Cuts) -> None:
        self._cuts = cuts

    def __len__(self) -> int:
        return len(self._cuts)

    def one(self, row: int) -> str:
        """The id of a number."""
        document, number, *_ = self._cuts.piece(row)
        return str(document) if number is None else f"{document}#{number}"


class TokenStore:
    """Examples [N] of documents, by number; what `StoredExamples` reads."""

    def __init__(self, path: Path, records: TokenRecords, cuts: Cuts) -> None:
        self.path, self.records, self.cuts = path, records, cuts
        self.ends, self.documents, self.cut = np.cumsum(cuts.lengths), cuts.documents, cuts.chunk is not None
        self.ids = Names(cuts) if self.cut else records.ids

    def example(self, row: int) -> DecodedExample:
        """The example of a number."""
        document, number, start, stop = self.cuts.piece(row)
        tokens = self.records.documents.read(document, start, stop)
        mask = np.arange(stop - start) > 0
        if number is not None and (kept := self.cuts.kept(document)):
            tokens = np.concatenate([self.records.documents.read(document, 0, kept), tokens])
            mask = np.concatenate([np.zeros(kept, dtype=bool), mask])
            mask[kept] = number == 1  # elsewhere it is predicted in the piece before
        until = None if number is None else stop  # of what is cut off people see the whole
        owner = str(document) if self.cut else None
        return DecodedExample(self.ids[row], tokens, mask, lambda: self.records.text(document, start, until), owner)

    def fingerprint(self, rows: range) -> str | None:
        """That of some examples that follow each other, where it is kept."""
        return fingerprint_of(self._note, rows, len(self.ends))

    @cached_property
    def _note(self) -> dict[str, Any]:
        return note_in(self.path)


def token_examples(
    cache: Path, records: TokenRecords, known: int, *, max_length: int, chunk: int | None
) -> StoredExamples:
    """The examples of documents, as a model reads them that embeds `known` tokens; checked once, and known in `cache`.

    Errors (UserError): a token that the model does not embed, a `chunk` that does not fit.
    """
    check_chunk(chunk, max_length)
    documents, bos = records.documents, begins_with(records.tokenizer)
    lengths = documents.lengths

    def store(folder: Path) -> TokenStore:
        return TokenStore(folder, records, Cuts(lengths, max_length, chunk, np.load(folder / "begun.npy")))

    def build(folder: Path) -> None:
        documents.check_tokens(known)
        pieces = chunk is not None and bool(bos)
        begun = [pieces and documents.read(row, 0, 1).tolist() == bos for row in range(len(documents))]
        np.save(folder / "begun.npy", np.array(begun, dtype=bool))
        found, met = store(folder), Fingerprints()
        for row in track(range(len(found.ends)), "fingerprints of documents", len(found.ends), stoppable=True):
            met.add(found.example(row))
        if digest(documents.path) != documents.content[0]:
            raise UserError(f"{documents.path}: changed while it was read; run again when it is at rest")
        write_json(folder / "note.json", met.note())

    decides = [documents.content, known, bos, max_length, chunk]
    path = mended_folder(entry(cache, "tokens", *decides, by=[token_examples]), build)
    found = StoredExamples(store(path))
    if chunk is not None:
        log.info("dataset.chunk=%d: %d documents in %d pieces", chunk, len(records), len(found))
    elif longer := int((lengths > max_length).sum()):
        log.warning(
            "%d of %d documents are longer than the %d tokens that the model reads (its context, or dataset.max_length "
            "where that is less), and were cut on the right", longer, len(found), max_length,
        )  # fmt: skip
    return found
