"""What somebody hands over from their program: rows of text in whatever holds them, or items with a length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdaexp.data.records import Place, Skipped
from tdaexp.data.tables import Row, read_rows
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError

KINDS = "a list of dicts, strings or (prompt, completion) pairs, a datasets.Dataset, a pandas frame, or a path"


def rows_of(data: Any, name: str) -> list[Row]:
    """Rows of text by column; `name` ("train") says in messages whose they are.

    Strings have the column `text`, pairs `prompt` and `completion`. Errors (UserError): no row, a generator, or what
    holds no rows of text.
    """
    if isinstance(data, (str, Path)):
        return read_rows(Path(data))
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a frame of pandas
        data = data.to_dict("records")
    refuse_stream(data, name)
    if isinstance(data, Mapping):
        raise UserError(f"{name}: holds several parts ({', '.join(map(str, data))}); hand over one, e.g. DATA['train']")
    if not hasattr(data, "__getitem__"):
        raise UserError(f"{name}: is a {type(data).__name__}; give {KINDS}")
    if not len(data):
        raise UserError(f"{name}: holds no row; give at least one")
    places = [Place(name, number) for number in range(len(data))]
    return [Row(_values(data[number], place), place) for number, place in enumerate(places)]


def labelled_rows(data: Any, name: str) -> list[Row]:
    """Rows of texts and their classes: `text` and `label` are what is asked and its answer. Errors as of `rows_of`."""
    rows = rows_of(data, name)
    for row in rows:
        if {"text", "label"} <= row.values.keys():
            row.values["prompt"], row.values["completion"] = row.values.pop("text"), str(row.values.pop("label"))
    return rows


def refuse_stream(data: Any, name: str) -> None:
    """Refuse (UserError) what gives its rows only once, or has no length: rows are gone through several times."""
    if isinstance(data, Iterator) or not hasattr(data, "__len__"):
        raise UserError(
            f"{name}: a {type(data).__name__} gives no row twice or has no length; hand over a list of its rows"
        )


def _values(row: Any, where: Place) -> dict[str, Any]:
    if isinstance(row, Mapping):
        return {str(key): value for key, value in row.items()}
    if isinstance(row, str):
        return {"text": row}
    if isinstance(row, Sequence) and len(row) == 2 and all(isinstance(part, str) for part in row):
        return dict(zip(("prompt", "completion"), row, strict=True))
    raise UserError(f"{where}: is a {type(row).__name__}; a row is a dict, a string, or a pair (prompt, completion)")


@dataclass
class Handed(Text):
    """Text whose rows are in memory, by the keys of `Text`; `path` and `query_path` are what messages call them."""

    train: list[Row] = field(default_factory=list, init=False)
    queries: list[Row] = field(default_factory=list, init=False)

    def _files(self) -> list[Path]:
        return []

    def _rows(self) -> list[Row | Skipped]:
        return [*self.train]

    def _query_rows(self) -> list[Row | Skipped]:
        return [*self.queries]
