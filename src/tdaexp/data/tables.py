"""Rows of files and hub data sets: named columns, and errors that name file, row and column.

Columns that are read as text must hold text (`runtime.reading.as_text`); ids, groups, classes and training ids may be
whole numbers too. Nothing else is turned into text: NaN, booleans and fractions are refused with file and row.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tdaexp.data.columnar import first_line, hub_values, table_values
from tdaexp.data.files import files_of, kind_of, opened_text
from tdaexp.data.lines import READERS, Values
from tdaexp.data.records import Place, Record, Skipped
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import as_name, as_text, reason

__all__ = ["Row", "first_line", "hub_rows", "made_of", "read_rows", "rows_in", "scan", "second_stage"]
log = logging.getLogger(__name__)
SHOWN = 20
"""Rows that are named, of those that cannot be read."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, and where it stands."""

    values: dict[str, Any]
    where: Place

    def text(self, column: str) -> str:
        """Return a column's text.

        Raises:
            UserError: the column does not exist, is empty in this row, or holds what is no text.
        """
        value = self.value(column)
        if self.blank(column):
            raise UserError(f"{self.where}: column '{column}' holds no text; fill it in or remove the row")
        return as_text(value, f"{self.where}: column '{column}'")

    def blank(self, column: str) -> bool:
        """Whether a column is there and holds nothing, or nothing but blanks."""
        value = self.value(column)
        return value is None or (isinstance(value, str) and not value.strip())

    def name(self, column: str) -> str:
        """Return a column's id, group or class: a text or a whole number.

        Raises:
            UserError: the column does not exist, is empty in this row, or holds something else.
        """
        return as_name(self.value(column), f"{self.where}: column '{column}'")

    def value(self, column: str) -> Any:
        """Return a column's raw value.

        Raises:
            UserError: the column does not exist.
        """
        if column not in self.values:
            raise unknown("column", column, map(str, self.values), str(self.where))
        return self.values[column]


def rows_in(path: Path, unit: str = "line", split: str = "train") -> Iterator[Row | Skipped]:
    """The rows of the files that a path names (`files.files_of`), one file after the other, as they are read.

    A row that cannot be read is there as what is wrong with it. `unit` is what a row of a `.txt` file is, `split` the
    part of a folder that has several.

    Raises:
        UserError: a file is missing, empty, of another kind, or damaged as a whole.
    """
    try:
        files = files_of(path)
        if len(files) > 1:
            log.info("%s: %d files, %s to %s", path, len(files), files[0].name, files[-1].name)
        for file in files:
            yield from _rows(file, unit, split)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the name and its permissions") from error


def scan(path: Path, unit: str = "line", split: str = "train") -> list[Row | Skipped]:
    """As `rows_in`, all of them at once."""
    return list(rows_in(path, unit, split))


def _rows(path: Path, unit: str, split: str) -> Iterator[Row | Skipped]:
    if not path.exists():
        raise UserError(f"{path}: no such file; relative paths start at the folder the command runs in")
    kind, empty = kind_of(path), True
    with contextlib.ExitStack() as opened:
        if kind in READERS and not path.is_dir():
            found = placed(READERS[kind](opened.enter_context(opened_text(path)), str(path), unit), str(path))
        else:
            found = placed(enumerate(table_values(path, split), start=1), str(path))
        for row in found:
            empty = False
            yield row
    if empty:
        raise UserError(f"{path}: the file holds no record; give a file with at least one row")


def placed(numbered: Iterable[tuple[int, Values]], source: str) -> Iterator[Row | Skipped]:
    """Rows of a source from their numbers and values; a text in place of values says what is wrong."""
    for number, values in numbered:
        where = Place(source, number)
        yield Skipped(where, values) if isinstance(values, str) else Row(values, where)


def each_made(found: Iterable[Row | Skipped], make: Callable[[Row, int], T]) -> Iterator[T | Skipped]:
    """What `make` makes of each row and its number from 0; a row that cannot be read is there as what is wrong."""
    for number, row in enumerate(found):
        if isinstance(row, Skipped):
            yield row
            continue
        try:
            made = make(row, number)
        except UserError as error:
            yield Skipped(row.where, str(error).removeprefix(f"{row.where}: "))
        else:
            yield made


def made_of(
    found: Sequence[Row | Skipped], make: Callable[[Row, int], T], skip_bad: bool = False
) -> tuple[list[T], list[Skipped]]:
    """What `make` makes of the rows, and the rows that cannot be read.

    Raises:
        UserError: there are such rows, all named; with `skip_bad`, nothing else is left.
    """
    made: list[T] = []
    bad: list[Skipped] = []
    for one in each_made(found, make):
        if isinstance(one, Skipped):
            bad.append(one)
        else:
            made.append(one)
    tell_bad(bad, len(found), skip_bad)
    return made, bad


def tell_bad(bad: list[Skipped], total: int, skip_bad: bool) -> None:
    """Say which of so many rows cannot be read and were left out.

    Raises:
        UserError: there are such rows; with `skip_bad`, nothing else is left.
    """
    if bad and not (skip_bad and len(bad) < total):
        raise UserError(_told(bad, total))
    for where, why in bad[:SHOWN]:
        log.warning("left out: %s: %s", where, why)
    if bad:
        log.warning("dataset.skip_bad: %d of %d rows could not be read and were left out", len(bad), total)


def _told(bad: list[Skipped], total: int) -> str:
    """What is wrong with rows, in one line."""
    if len(bad) == 1:
        return f"{bad[0].where}: {bad[0].reason}"
    by_reason: dict[str, list[int]] = {}
    for where, why in bad[:SHOWN]:
        by_reason.setdefault(why, []).append(where.row)
    shown = " | ".join(
        f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}: {why}" for why, rows in by_reason.items()
    )
    more = f" | and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    advice = "mend or remove them (dataset=text leaves them out with dataset.skip_bad=true)"
    if len(bad) == total and all(why.startswith("column '") for _, why in bad):
        advice = "as all of them are so, name other columns (dataset.text_column, prompt_column, completion_column or "
        advice += "messages_column), or write the file again with a column for each text"
    return f"{bad[0].where.file}: {len(bad):,} of {total:,} rows cannot be read: {shown}{more}; {advice}"


def read_rows(path: Path, unit: str = "line") -> list[Row]:
    """As `scan`, where every row can be read. Raises: UserError as there, or naming the rows that cannot."""
    return made_of(scan(path, unit), lambda row, _: row)[0]


def hub_rows(name: str, config: str | None, split: str, revision: str | None = None) -> Iterator[Row]:
    """Download (or take from the hub's cache) one split of a hub data set; `revision` is a branch, tag or commit.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be reached or does not exist.
    """
    for number, one in enumerate(hub_values(name, config, split, revision), start=1):
        yield Row(dict(one), Place(name, number))


def second_stage(path: str | None, limit: int | None) -> list[Record]:
    """Columns `prompt` and `completion` of the first `limit` rows of a file (None: all), as records `ft-N`."""
    found = [] if path is None else scan(Path(path))[:limit]
    return made_of(
        found, lambda row, n: Record(f"ft-{n}", row.text("prompt"), _completion(row).strip(), where=row.where)
    )[0]


def _completion(row: Row) -> str:
    """The completion of a fine-tuning row, which may be the number of a class."""
    return row.name("completion") if isinstance(row.value("completion"), int) else row.text("completion")
