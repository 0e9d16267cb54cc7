"""What a plan needs to know of training records that are kept in a store: a few of them are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tdaexp.data.encoding import begins_with
from tdaexp.data.files import COMPRESSED
from tdaexp.data.record_store import RecordStore
from tdaexp.data.records import Record
from tdaexp.data.sizes import COUNTED, Sizes
from tdaexp.data.text import Text
from tdaexp.data.token_examples import Cuts
from tdaexp.data.token_records import TokenRecords

PACKED = 4.0
"""How much longer texts are than the files that they are packed in."""
RECORD_BYTES = 60.0
"""Of a record beside its text, and of its example beside its tokens: id, place, hashes, ends."""


def sizes_of_stored(records: RecordStore, sized: Callable[[list[Record]], Sizes]) -> Sizes:
    """Sizes of all examples of the records from those of `COUNTED` records: the longest, and others for all the rest.

    `sized` gives the sizes of the examples that some records become.
    """
    if len(records) <= COUNTED:
        return sized(list(records))
    order = np.argsort(-records.characters, kind="stable")
    longest, rest = np.split(order, [COUNTED // 2])
    some = np.random.default_rng(0).permutation(rest)[: COUNTED - len(longest)]
    known, others = (sized([records[int(place)] for place in places]) for places in (longest, some))
    count = round(len(others) * len(rest) / len(some))
    return Sizes.joined([known, Sizes(np.resize(others.tokens, count), np.resize(others.predicted, count))])


def in_tokens(dataset: Any) -> bool:
    """Whether a data set's training records are in a file of tokens."""
    return isinstance(dataset, Text) and dataset.in_tokens


def sizes_of_tokens(records: TokenRecords, tokenizer: Any, longest: int, chunk: int | None) -> Sizes:
    """Sizes of the examples of documents, all of them: as if each began with a bos token where texts do."""
    lengths = records.documents.lengths
    tokens = Cuts(lengths, longest, chunk, np.full(len(lengths), bool(begins_with(tokenizer)))).lengths
    return Sizes(tokens, tokens - 1)


def stored_bytes(dataset: Any, train: Sizes, vocabulary: int) -> float:
    """Bytes on disk of the training records and their tokens, where they are kept there and not in memory; else 0."""
    files = dataset.kept_files() if isinstance(dataset, Text) and dataset.at_hand else []
    if not files:
        return 0.0
    packed = (*COMPRESSED, ".parquet")
    texts = sum(file.stat().st_size * (PACKED if file.suffix in packed else 1.0) for file in files)
    token = (2 if vocabulary <= 1 << 16 else 4) + 1 / 8
    return texts + RECORD_BYTES * len(train) + token * float(train.tokens.sum())
