"""Training records of a file, with their paraphrases where it has some."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from tdaexp.data.columns import Columns
from tdaexp.data.dataset import query_id
from tdaexp.data.groups import groups_of, stratified
from tdaexp.data.records import Record, Skipped
from tdaexp.data.tables import Row, each_made, made_of
from tdaexp.data.usual import columns_of

Pair = tuple[Record, Record | None]
"""A training record and its paraphrase."""


def training_pairs(
    rows: Sequence[Row | Skipped], named: Columns, paraphrase: Columns, fraction: float, skip_bad: bool
) -> tuple[list[Pair], list[Skipped]]:
    """Records with their paraphrases, and rows that are left out; `fraction` of a text's words are the prompt.

    Errors (UserError): rows that cannot be read.
    """
    columns = columns_of(rows, named)

    def make(row: Row, number: int) -> Pair:
        record = columns.record(row, number, fraction)
        if paraphrase.text is None and paraphrase.completion is None:
            return record, None
        query = paraphrase.record(row, number, fraction)
        return record, replace(query, id=query_id(record.id, "paraphrased"), truth=(record.id,))

    return made_of(rows, make, skip_bad)


def records_in(
    rows: Callable[[], Iterable[Row | Skipped]], named: Columns, fraction: float
) -> Iterator[Record | Skipped]:
    """As the records of `training_pairs`, one after the other: rows are gone through twice, first for their columns."""
    columns = columns_of(rows(), named)
    yield from each_made(rows(), lambda row, number: columns.record(row, number, fraction))


def without_held_out(pairs: list[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Records to train on, and `count` that are held out, drawn at random; each group has its share."""
    if not count:
        return pairs, []
    groups = groups_of([record for record, _ in pairs])
    chosen = set(stratified(groups, count, [0], "dataset.held_out").tolist())
    kept, out = ([one for k, one in enumerate(pairs) if (k in chosen) == held] for held in (False, True))
    return kept, out


def ids_of(rows: Sequence[Row | Skipped], named: Columns) -> set[str]:
    """The ids of all rows that can be read."""
    columns = columns_of(rows, named, told=False)
    return {columns.name(row, number) for number, row in enumerate(rows) if isinstance(row, Row)}
