"""Rows of text files and hub data sets: named columns, and errors that name file, row and column.

Columns that are read as text must hold text (`runtime.reading.as_text`); ids, groups, classes and training ids may be
whole numbers too. Nothing else is turned into text: NaN, booleans and fractions are refused with file and row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.reading import as_name, as_text, parse_json, reason, repeated, undecodable

csv.field_size_limit(2**31 - 1)  # of a field in bytes; how long a text may be is decided when it is read


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and where it stands ("FILE, row N"), for messages."""

    values: dict[str, Any]
    where: str

    def text(self, column: str) -> str:
        """Return a column's text.

        Raises:
            UserError: the column does not exist, is empty in this row, or holds what is no text.
        """
        value = self.value(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{self.where}: column '{column}' holds no text; fill it in or remove the row")
        return as_text(value, f"{self.where}: column '{column}'")

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
            raise unknown("column", column, map(str, self.values), self.where)
        return self.values[column]


def read_rows(path: Path, unit: str = "line") -> list[Row]:
    """Read `.jsonl`, `.tsv`, `.csv` (with a header) or `.txt`, whose only column `text` holds a line or a paragraph.

    A TSV is taken literally: quotes are text. Empty lines are skipped and still counted.

    Raises:
        UserError: the file is missing, empty, of another kind, not UTF-8, or a row is malformed.
    """
    readers = {
        ".jsonl": _jsonl,
        ".tsv": _tsv,
        ".csv": _csv,
        ".txt": _paragraphs if unit == "paragraph" else _lines,
    }
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it ({', '.join(readers)})")
        if path.suffix not in readers:
            raise unknown("kind of file", path.suffix or path.name, readers, str(path))
        if not path.is_file():
            raise UserError(f"{path}: no such file; relative paths start at the folder the command runs in")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(readers[path.suffix](stream, path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({undecodable(path)}); convert it first") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); check the name and its permissions") from error
    if not rows:
        raise UserError(f"{path}: the file holds no record; give a file with at least one row")
    return rows


def second_stage(path: str | None, limit: int | None) -> list[Record]:
    """Columns `prompt` and `completion` of the first `limit` rows of a file (None: all), as records `ft-N`."""
    rows = [] if path is None else read_rows(Path(path))[:limit]
    return [
        Record(f"ft-{n}", row.text("prompt"), _completion(row).strip(), where=row.where) for n, row in enumerate(rows)
    ]


def _completion(row: Row) -> str:
    """The completion of a fine-tuning row, which may be the number of a class."""
    return row.name("completion") if isinstance(row.value("completion"), int) else row.text("completion")


def hub_rows(name: str, config: str | None, split: str, revision: str | None = None) -> list[Row]:
    """Download (or take from the hub's cache) one split of a hub data set; `revision` is a branch, tag or commit.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be reached or does not exist.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"dataset.hub={name}: needs the package 'datasets'; pip install 'tdaexp[hub]'") from error
    options = {} if revision is None else {"revision": revision}
    try:
        with quiet("huggingface_hub", "datasets"):  # they announce each of their retries
            table = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"dataset.hub={name}: cannot load split '{split}' ({first_line(error)}); check name, network and "
            "`hf auth login`, or give a local file with dataset.path"
        ) from error
    return [Row(dict(values), f"{name}, row {number}") for number, values in enumerate(table, start=1)]


def first_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _jsonl(stream: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            where = f"{path}, row {number}"
            values = parse_json(line, where)
            if not isinstance(values, dict):
                raise UserError(f"{where}: holds {type(values).__name__}, not a JSON object with columns")
            yield Row(values, where)


def _tsv(stream: Iterable[str], path: Path) -> Iterator[Row]:
    split = (line.rstrip("\r\n").split("\t") for line in stream)
    return _table(enumerate(split, start=1), path)


def _csv(stream: Iterable[str], path: Path) -> Iterator[Row]:
    reader = csv.reader(stream, strict=True)
    return _table(_csv_records(reader, path), path)


def _csv_records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}, row {reader.line_num}: not valid CSV ({error}); mend the line") from error


def _table(numbered: Iterator[tuple[int, list[str]]], path: Path) -> Iterator[Row]:
    header: list[str] = next(numbered, (0, []))[1]
    twice = repeated(header)
    if twice is not None:
        raise UserError(f"{path}, row 1: two columns are named '{twice}'; name each column once")
    for number, cells in numbered:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}, row {number}: {len(cells)} columns where the header has {len(header)}")
        yield Row(dict(zip(header, cells, strict=True)), f"{path}, row {number}")


def _lines(stream: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield Row({"text": line.strip()}, f"{path}, row {number}")


def _paragraphs(stream: Iterable[str], path: Path) -> Iterator[Row]:
    lines: list[str] = []
    start = 1
    for number, line in enumerate((*stream, ""), start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip())
        elif lines:
            yield Row({"text": "\n".join(lines)}, f"{path}, row {start}")
            lines = []
