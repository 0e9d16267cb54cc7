"""The files of an answer: `top.csv` and `top.jsonl` by question, `rows.csv` by training row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from tdaexp.metrics.belonging import by_document
from tdaexp.report.answers import TOP_COLUMNS, Question, lines, questions, row_table
from tdaexp.report.texts import Passage, Texts
from tdaexp.runtime.csvs import csv_line, frame_csv
from tdaexp.runtime.files import atomic_path, write_text

FILES = ("top.csv", "top.jsonl", "rows.csv")


def write_answer(
    folder: Path, dataset: xr.Dataset, texts: Texts | None, k: int, self_influence: Mapping[str, float] | None = None
) -> None:
    """Write what a store of pairs says, for people and programs, into a run's folder.

    `top.csv` has a line for each of the `k` most helpful and most harmful rows of a query (`answers.TOP_COLUMNS`;
    near-identical ones as a JSON list of ids), `top.jsonl` a question a line, and `rows.csv` a training row a line
    (`answers.row_table`). Where texts were cut, the rows of a question are pieces; those of `rows.csv` are whole, each
    with the sums over its pieces.
    """
    near = TOP_COLUMNS.index("near_identical")
    with (
        atomic_path(folder / "top.csv") as table,
        atomic_path(folder / "top.jsonl") as listed,
        table.open("w", encoding="utf-8", newline="") as csv,
        listed.open("w", encoding="utf-8") as jsonl,
    ):
        csv.write(csv_line(TOP_COLUMNS))
        for one in questions(dataset, texts, k):
            jsonl.write(json.dumps(as_json(one), ensure_ascii=False) + "\n")
            for line in lines(one):
                ids = json.dumps(line[near], ensure_ascii=False) if line[near] else ""
                csv.write(csv_line((*line[:near], ids, *line[near + 1 :])))
    table = row_table(by_document(dataset), _of_documents(dataset, texts), self_influence)
    write_text(folder / "rows.csv", frame_csv(table))


def _of_documents(dataset: xr.Dataset, texts: Texts | None) -> Texts | None:
    """The texts with those of whole documents in place of their pieces, in the data's order."""
    if texts is None or "document" not in dataset.coords:
        return texts
    known = {**texts["train"], **texts.get("document", {})}
    names = [name for name in dict.fromkeys(dataset["document"].values.tolist()) if name in known]
    return {**texts, "train": {name: known[name] for name in names}}


def as_json(one: Question) -> dict[str, Any]:
    """A question as a line of `top.jsonl`."""
    found: dict[str, Any] = {"query": one.query, "query_set": one.query_set, **_parts(one.text)}
    for side, entries in one.sides.items():
        found[side] = [
            {
                "rank": entry.rank,
                "row": entry.row,
                **({} if entry.document is None else {"document": entry.document}),
                "score": entry.score,
                **({} if entry.source is None else {"source": entry.source}),
                **_parts(entry.text),
                "near_identical": [{"row": row, "score": score} for row, score in entry.near],
            }
            for entry in entries
        ]
    return found


def _parts(text: Passage) -> dict[str, str]:
    rejected = {"rejected": text.rejected} if text.rejected else {}
    return {"prompt": text.prompt, "completion": text.completion, **rejected}
