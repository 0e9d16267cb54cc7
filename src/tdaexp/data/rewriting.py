"""A training file without some of its rows, everything else as it was.

Files of lines are copied line by line, JSON lists, tables and folders of `datasets` row by row with all columns;
what lies elsewhere (hub and generated data) is written as JSON lines that `dataset=text` reads with the same ids.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tdaexp.data.columnar import TABLES, is_saved, opened_arrow
from tdaexp.data.records import Record
from tdaexp.data.templates import ASSISTANT
from tdaexp.runtime.files import atomic_path, write_text
from tdaexp.runtime.reading import parse_json

LINES = (".jsonl", ".json", ".tsv", ".csv", ".txt")


def rewritten(path: Path, unit: str, rows: set[int], target: Path, split: str = "train") -> bool:
    """Write `path` without the rows of these numbers (`records.Place`) as `target`; False for a kind that cannot be.

    `unit` is what a row of a `.txt` file is, `split` the part of a folder of several that has the rows; the others are
    kept. Errors: OSError where the file cannot be read.
    """
    if path.is_dir() and is_saved(path):
        _saved(path, rows, target, split)
        return True
    if not path.is_dir() and path.suffix in TABLES:
        _table(path, rows, target)
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
    gone = _spanned(lines, rows) if path.suffix == ".csv" else _paragraphs(lines, rows) if unit == "paragraph" else rows
    with (
        atomic_path(target) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        out.writelines(line for number, line in enumerate(lines, start=1) if number not in gone)
    return True


def written(records: Iterable[Record], target: Path) -> None:
    """Write records as JSON lines with the columns `id`, and `prompt` and `completion`; if any is a dialogue of more
    than one question, all with `messages`, as rows of one file are of one form.
    """
    records = list(records)
    told = _messages if any(record.said for record in records) else _pair
    lines = [json.dumps({"id": one.id, **told(one)}, ensure_ascii=False) + "\n" for one in records]
    write_text(target, "".join(lines))


def _pair(record: Record) -> dict[str, Any]:
    return {"prompt": record.prompt, "completion": record.completion}


def _messages(record: Record) -> dict[str, Any]:
    before = record.said or ((("user", record.prompt),) if record.prompt else ())
    turns = (*before, (ASSISTANT, record.completion))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


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


def _table(path: Path, rows: set[int], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        with pa.memory_map(str(path)) as source:
            table = opened_arrow(source).read_all()
    kept = table.take([row for row in range(table.num_rows) if row + 1 not in rows])
    with atomic_path(target) as temporary:
        if path.suffix == ".parquet":
            pq.write_table(kept, temporary)
            return
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, kept.schema) as out:
            out.write_table(kept)


def _saved(path: Path, rows: set[int], target: Path, split: str) -> None:
    import datasets

    found = datasets.load_from_disk(str(path))
    several = isinstance(found, dict)
    part = found[split] if several else found
    kept = part.select([row for row in range(len(part)) if row + 1 not in rows])
    whole = datasets.DatasetDict({**found, split: kept}) if several else kept
    with atomic_path(target) as temporary:
        whole.save_to_disk(str(temporary))
