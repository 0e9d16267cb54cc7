"""Training examples that belong together: pieces of one document, and records of one source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.data.records import Record

DOCUMENT, SOURCE = "document", "source"
"""What training examples belong to, in a store: the record that they are pieces of, and where that comes from."""


def labels_of(records: Sequence[Record], examples: Examples) -> dict[str, list[str]]:
    """What each example [N] belongs to: its document where texts were cut, its source where records have one."""
    names = [one.id if one.document is None else one.document for one in examples]
    found = {} if all(one.document is None for one in examples) else {DOCUMENT: names}
    source = {record.id: str(record.meta[SOURCE]) for record in records if SOURCE in record.meta}
    return found | ({SOURCE: [source.get(name, "") for name in names]} if source else {})


def of_pieces(candidates: Candidates, documents: np.ndarray) -> Candidates:
    """Candidates [Q, C] among documents as candidates among their pieces, which keep the document's place in the order.

    `documents` [N] int says which document each piece is of, in ascending order. Where a query has fewer pieces: -1.
    """
    count = int(documents.max()) + 1
    if len(documents) == count:
        return candidates
    first, pieces = np.searchsorted(documents, np.arange(count)), np.bincount(documents, minlength=count)
    rows = []
    for indices, scores in zip(candidates.indices, candidates.bm25, strict=True):
        real = indices >= 0
        chosen, many = indices[real], pieces[indices[real]]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        rows.append((np.repeat(first[chosen], many) + within, np.repeat(scores[real], many)))
    width = max((len(row) for row, _ in rows), default=0)  # nothing may be asked
    found = np.full((len(rows), width), -1, dtype=np.int64)
    bm25 = np.full((len(rows), width), np.nan)
    for k, (row, scores) in enumerate(rows):
        found[k, : len(row)], bm25[k, : len(row)] = row, scores
    return Candidates(found, bm25)
