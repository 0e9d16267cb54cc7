"""Files of lines: JSON lines, JSON, TSV, CSV and plain text, row by row.

A reader gives the number of each row (that of its line, from 1; empty lines are skipped and still counted) and its
values by column, or a text that says why it cannot be read: one bad row hides no other.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.reading import parse_json, repeated

csv.field_size_limit(2**31 - 1)  # of a field in bytes; how long a text may be is decided when it is read

Values = dict[str, Any] | str
Reader = Callable[[TextIO, str, str], Iterator[tuple[int, Values]]]
"""(stream, its name for messages, the unit of plain text) to row numbers and values."""


def _jsonl(stream: TextIO, source: str, unit: str) -> Iterator[tuple[int, Values]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield number, _object(line, f"{source}, row {number}")


def _object(line: str, where: str) -> Values:
    bad = undecoded(line)
    if bad:
        return bad
    try:
        values = parse_json(line, where)
    except UserError as error:
        return str(error).removeprefix(f"{where}: ")
    return values if isinstance(values, dict) else f"holds {type(values).__name__}, not a JSON object with columns"


def _json(stream: TextIO, source: str, unit: str) -> Iterator[tuple[int, Values]]:
    """One JSON list of objects, whose rows are its entries; or JSON lines, which people call so too."""
    text = stream.read()
    if not text.lstrip().startswith("["):
        yield from _jsonl(io.StringIO(text, newline=""), source, unit)
        return
    if bad := undecoded(text):
        raise UserError(f"{source}: {bad}")
    for number, values in enumerate(parse_json(text, source), start=1):
        fits = isinstance(values, dict)
        yield number, values if fits else f"holds {type(values).__name__}, not a JSON object with columns"


def _tsv(stream: TextIO, source: str, unit: str) -> Iterator[tuple[int, Values]]:
    """Taken literally: quotes are text."""
    return _table(enumerate((line.rstrip("\r\n").split("\t") for line in stream), start=1), source)


def _csv(stream: TextIO, source: str, unit: str) -> Iterator[tuple[int, Values]]:
    return _table(_records(stream), source)


def _records(stream: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    reader = csv.reader(stream, strict=True)
    while True:
        try:
            yield from ((reader.line_num, cells) for cells in reader)
            return
        except csv.Error as error:
            yield reader.line_num, f"not valid CSV ({error}); mend the line"


def _table(numbered: Iterator[tuple[int, list[str] | str]], source: str) -> Iterator[tuple[int, Values]]:
    header = next(numbered, (0, []))[1]
    if isinstance(header, str):
        raise UserError(f"{source}, row 1: {header}")
    twice = repeated(header)
    if twice is not None:
        raise UserError(f"{source}, row 1: two columns are named '{twice}'; name each column once")
    for number, cells in numbered:
        if isinstance(cells, str):
            yield number, cells
        elif any(cells):
            if len(cells) != len(header):
                yield number, f"{len(cells)} columns where the header has {len(header)}"
            else:
                yield number, undecoded(",".join(cells)) or dict(zip(header, cells, strict=True))


def _text(stream: TextIO, source: str, unit: str) -> Iterator[tuple[int, Values]]:
    return _paragraphs(stream) if unit == "paragraph" else _lines(stream)


def _lines(stream: Iterable[str]) -> Iterator[tuple[int, Values]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield number, undecoded(line) or {"text": line.strip()}


def _paragraphs(stream: Iterable[str]) -> Iterator[tuple[int, Values]]:
    lines: list[str] = []
    start = 1
    for number, line in enumerate(itertools.chain(stream, [""]), start=1):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip())
        elif lines:
            text = "\n".join(lines)
            yield start, undecoded(text) or {"text": text}
            lines = []


def undecoded(text: str) -> str:
    """What is wrong with a text that has bytes which are no UTF-8; empty for others."""
    if text.isascii():
        return ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = len(text[: error.start].encode("utf-8")) + 1
        return f"not UTF-8 text (byte {byte} of it); convert it first"
    return ""


READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".tsv": _tsv,
    ".csv": _csv,
    ".txt": _text,
}
