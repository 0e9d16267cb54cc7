"""Stored records into stored examples: tokenised some at a time, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.data.chunks import check_names
from tdaexp.data.example_store import ExampleStore, Fingerprints, StoredExamples
from tdaexp.data.examples import Examples
from tdaexp.data.flat import Writer
from tdaexp.data.lazy import AT_ONCE
from tdaexp.data.record_store import RecordStore
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.runtime.files import mended_folder, write_json
from tdaexp.runtime.progress import track
from tdaexp.runtime.quiet import quiet

log = logging.getLogger(__name__)


def kept_examples(
    path: Path,
    records: RecordStore,
    tokenizer: Any,
    vocabulary: int,
    check: Callable[[Examples], None],
    **how: Any,
) -> StoredExamples:
    """What `tokenise(records, tokenizer, **how)` gives, from a folder, which is filled where it is not there.

    `check` looks at examples before they are written, and refuses tokens beyond the model's `vocabulary`. A damaged
    folder is named and made again. Errors (UserError): those of `tokenise` and of `check`.
    """
    chunk, longest = how["chunk"], how["max_length"]

    def build(folder: Path) -> None:
        dtype = np.uint16 if vocabulary <= 1 << 16 else np.uint32
        with _Writing(folder, records, dtype, chunk) as written:
            starts = range(0, len(records), AT_ONCE)
            for start in track(starts, "tokenising batches of texts", len(starts), stoppable=True):
                some = records[start : start + AT_ONCE]
                with quiet("tdaexp.data.tokenise", "tdaexp.data.chunks"):  # what is cut is told of all together
                    examples = tokenise(some, tokenizer, **how)
                check(examples)
                written.add(start, some, examples)

    found = StoredExamples(ExampleStore(mended_folder(path, build), records))
    if chunk is not None:
        log.info("dataset.chunk=%d: %d texts in %d pieces", chunk, len(records), len(found))
    elif full := int((found.lengths == longest).sum()):
        log.warning(
            "%d of %d examples have the %d tokens that the model reads at most (its context, or dataset.max_length "
            "where that is less): what was longer was cut, prompts on the left, completions on the right",
            full, len(found), longest,
        )  # fmt: skip
    return found


class _Writing(contextlib.ExitStack):
    """The files of a store of examples while they are written."""

    def __init__(self, folder: Path, records: RecordStore, dtype: type, chunk: int | None) -> None:
        super().__init__()
        self.folder, self.records, self.dtype, self.chunk = folder, records, np.dtype(dtype), chunk
        self.tokens = self.enter_context(Writer(folder / "tokens"))
        self.mask = self.enter_context((folder / "mask.bin").open("wb"))
        self.rest = np.zeros(0, dtype=bool)  # of the mask: less than a byte
        self.documents: list[np.ndarray] = []
        self.fingerprints = Fingerprints()
        if chunk is not None:
            self.ids, self.texts = (self.enter_context(Writer(folder / name)) for name in ("ids", "texts"))

    def add(self, start: int, records: Sequence[Record], examples: Examples) -> None:
        """Write the examples of some records, the first of which has the number `start`."""
        self.tokens.numbers([one.tokens.astype(self.dtype) for one in examples])
        bits = np.concatenate([self.rest, *(one.loss_mask for one in examples)])
        whole = len(bits) - len(bits) % 8
        self.mask.write(np.packbits(bits[:whole]).tobytes())
        self.rest = bits[whole:]
        for one in examples:
            self.fingerprints.add(one)
        if self.chunk is not None:
            check_names(examples, self.records.names, self.chunk)
            self._add_pieces(start, records, examples)

    def _add_pieces(self, start: int, records: Sequence[Record], examples: Examples) -> None:
        self.ids.texts([one.id for one in examples])
        self.texts.texts(["" if one.id == one.document else one.text for one in examples])
        numbers = {one.id: number for number, one in enumerate(records, start)}
        self.documents.append(np.array([numbers[str(one.document)] for one in examples], dtype=np.int64))

    def __exit__(self, *error: Any) -> bool:
        """Close the files, and note what is known at their end."""
        if error[0] is None:
            self.mask.write(np.packbits(self.rest).tobytes())
            if self.chunk is not None:
                np.save(self.folder / "documents.npy", np.concatenate(self.documents))
            write_json(self.folder / "note.json", {"dtype": self.dtype.name, **self.fingerprints.note()})
        return bool(super().__exit__(*error))
