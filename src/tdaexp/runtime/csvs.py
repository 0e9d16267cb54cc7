"""CSV for people: cells that a spreadsheet would run as a formula are written as texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def cell(value: Any) -> Any:
    """Return a cell's value; a text that begins like a formula, and is no number, gets an apostrophe in front.

    Spreadsheets take the apostrophe for "this is text"; some of them drop blanks in front.
    """
    if not isinstance(value, str) or not (value.startswith(FORMULA) or value.lstrip().startswith(FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_line(values: Iterable[Any]) -> str:
    """One line of CSV with its line break."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([cell(value) for value in values])
    return stream.getvalue()


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A whole table; its first line is the header."""
    return "".join(csv_line(row) for row in (header, *rows))


def frame_csv(table: pd.DataFrame) -> str:
    """A data frame as CSV, without its index; numbers are written as pandas writes them."""
    safe = table.rename(columns=cell)
    for column, kind in enumerate(safe.dtypes):
        if kind.kind not in "biufcmM":
            safe.isetitem(column, safe.iloc[:, column].map(cell, na_action="ignore"))
    return str(safe.to_csv(index=False))
