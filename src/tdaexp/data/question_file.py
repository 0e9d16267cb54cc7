"""Questions in a file of their own: what is asked, and which training records they are known to come from."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tdaexp.data.columns import Columns
from tdaexp.data.dataset import query_id
from tdaexp.data.records import Record, Skipped
from tdaexp.data.tables import Row, made_of
from tdaexp.data.usual import columns_of
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import as_name, parse_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """How a file of questions is read: its named `columns`, those of sources (`truth`) and of classes (`label`), what
    its query set is called, and whether an answer must be there (else the model gives it).
    """

    columns: Columns
    truth: str | None
    label: str | None
    query_set: str
    answered: bool = True


def questions(
    rows: Sequence[Row | Skipped],
    asking: Asking,
    known: Collection[str],
    beyond: set[str],
    fraction: float = 0.0,
    skip_bad: bool = False,
) -> tuple[list[Record], list[Skipped]]:
    """The questions of a file, and its rows that are left out.

    A source must be a `known` training id, or one `beyond` those that were read; questions whose sources all lie there
    are left out and counted. Errors (UserError): rows that cannot be read, an unknown source.
    """
    answered = asking.answered and asking.label is None
    columns = columns_of(rows, asking.columns, questions=True, answered=answered)

    def make(row: Row, number: int) -> Record | None:
        record = (
            _labelled(columns, row, number, asking.label) if asking.label else columns.record(row, number, fraction)
        )
        if not record.text:
            raise UserError(f"{row.where}: is an empty question; fill it in or remove the row")
        sources = () if asking.truth is None else several(
            row.value(asking.truth), f"{row.where}: column '{asking.truth}'"
        )  # fmt: skip
        for source in sources:
            if source not in known and source not in beyond:
                raise unknown("training id", source, [*known, *beyond], str(row.where))
        kept = tuple(source for source in sources if source in known)
        if sources and not kept:
            return None
        return replace(record, id=query_id(record.id, asking.query_set), truth=kept, meta={})

    found, skipped = made_of(rows, make, skip_bad)
    kept = [record for record in found if record is not None]
    if len(kept) < len(found):
        log.info("left out %d queries whose sources lie beyond dataset.limit", len(found) - len(kept))
    return kept, skipped


def _labelled(columns: Columns, row: Row, number: int, label: str) -> Record:
    """A query with its class as completion."""
    return Record(columns.name(row, number), columns.asked(row), row.name(label), where=row.where)


def several(value: Any, where: str) -> tuple[str, ...]:
    """Read one training id or several: a list, a JSON list written as text, or a plain id; each counts once.

    Raises:
        UserError: an id is neither a text nor a whole number.
    """
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(UserError):  # an id may begin with a bracket
            value = parse_json(value, where)
    items = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(as_name(item, where) for item in items))
