"""A training file without some of its rows, everything else as it was.

Files of lines are copied line by line, JSON lists and parquet tables row by row; what lies elsewhere (arrow files,
folders of `datasets`, hub and generated data) is written as JSON lines that `dataset=text` reads with the same ids.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tdaexp.data.records import Record
from tdaexp.runtime.files import atomic_path, write_text
from tdaexp.runtime.reading import parse_json

LINES = (".jsonl", ".json", ".tsv", ".csv", ".txt")


def rewritten(path: Path, unit: str, rows: set[int], target: Path) -> bool:
    """Write `path` without the rows of these numbers (`records.Place`) as `target`; False for a kind that cannot be.

    `unit` is what a row of a `.txt` file is. Errors: OSError where the file cannot be read.
    """
    if path.suffix == ".parquet":
        _parquet(path, rows, target)
        return True
    if path.is_dir() or path.suffix not in LINES:
        return False
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        lines = list(stream)  # as the readers count them
    if path.suffix == ".json":
        text = "".join(lines)
        if text.lstrip().startswith("["):
            kept = [one for number, one in enumerate(parse_json(text, str(path)), start=1) if number not in rows]
            write_text(target, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
            return True
        lines = text.splitlines(keepends=True)
    gone = _spanned(lines, rows) if path.suffix == ".csv" else _paragraphs(lines, rows) if unit == "paragraph" else rows
    with (
        atomic_path(target) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        out.writelines(line for number, line in enumerate(lines, start=1) if number not in gone)
    return True


def written(records: Iterable[Record], target: Path) -> None:
    """Write records as JSON lines with the columns `id`, and `prompt` and `completion` or `messages`."""
    lines = []
    for record in records:
        if record.said:
            turns = [*record.said, ("assistant", record.completion)]
            row: dict[str, Any] = {"messages": [{"role": role, "content": content} for role, content in turns]}
        else:
            row = {"prompt": record.prompt, "completion": record.completion}
        lines.append(json.dumps({"id": record.id, **row}, ensure_ascii=False) + "\n")
    write_text(target, "".join(lines))


def _spanned(lines: list[str], rows: set[int]) -> set[int]:
    """The lines of CSV rows, which go by the number of their last line."""
    reader = csv.reader(iter(lines), strict=True)
    gone, before = set(), 0
    while True:
        try:
            for _ in reader:
                if reader.line_num in rows:
                    gone |= set(range(before + 1, reader.line_num + 1))
                before = reader.line_num
            return gone
        except csv.Error:  # a row that was left out when the file was read
            before = reader.line_num


def _paragraphs(lines: list[str], rows: set[int]) -> set[int]:
    """The lines of paragraphs, which go by the number of their first line, with the blank ones behind them."""
    gone, going, blank = set(), False, True
    for number, line in enumerate(lines, start=1):
        if line.strip() and blank:
            going = number in rows
        blank = not line.strip()
        if going:
            gone.add(number)
    return gone


def _parquet(path: Path, rows: set[int], target: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    with atomic_path(target) as temporary:
        pq.write_table(table.take([row for row in range(table.num_rows) if row + 1 not in rows]), temporary)
