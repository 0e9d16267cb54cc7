"""`python evaluate.py runs=[RUN] drop=0.01 drop_by=harmful`: the training file without the rows that did most of it."""

from __future__ import annotations

import glob
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from tdaexp import influence
from tdaexp.app.check import Checker
from tdaexp.app.config import EvaluateConfig
from tdaexp.app.stages.answering import texts_beside
from tdaexp.data.best import Best
from tdaexp.data.handed import Handed
from tdaexp.data.records import Record
from tdaexp.data.rewriting import rewritten, written
from tdaexp.data.text import Text
from tdaexp.metrics.belonging import by_document
from tdaexp.report.answers import row_table
from tdaexp.report.dropping import COLUMN, chosen
from tdaexp.report.itself import totals
from tdaexp.report.texts import Passage
from tdaexp.runtime.csvs import csv_text
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import SELF_INFLUENCE, write_json, write_text
from tdaexp.runtime.reading import read_settings

log = logging.getLogger(__name__)
STORE, CONFIG = "influence.zarr", "config.yaml"


def drop_rows(config: EvaluateConfig, folder: Path) -> dict[str, float]:
    """Write the training file of a run without some rows into `folder`, and `dropped.csv` and `drop.json`.

    Errors (UserError): not one run, a run of other data than is there now, no such scores.
    """
    run, asked, by = _run(config.runs), float(config.drop or 0), config.drop_by
    dataset = _dataset(run)
    records = dataset.train_records()
    _check_same(run, records)
    rows = [record.id for record in records]
    values = (_itself(run, rows) if by == "self" else _next_to_questions(run, by)).reindex(rows)
    gone = chosen(values, asked, by)
    file = _write(dataset, records, set(gone.index), folder)
    places = {record.id: record for record in records}
    told = [
        (row, "" if (place := places[row].where) is None else place.row, value, places[row].text)
        for row, value in gone.items()
    ]
    write_text(folder / "dropped.csv", csv_text(("row", "line", COLUMN[by], "text"), told))
    about = {"run": str(run), "by": by, "column": COLUMN[by], "drop": asked, "dropped": len(gone), "of": len(records)}
    write_json(folder / "drop.json", {**about, "file": file.name, "rows": [row for row, _ in gone.items()]})
    log.info("dropped %d of %d training rows (%s); what is left: %s", len(gone), len(records), by, file)
    _tell_what_moves(dataset, records, len(gone))
    return {"drop/rows": float(len(gone)), "drop/of": float(len(records))}


def _tell_what_moves(dataset: Any, records: list[Record], gone: int) -> None:
    """Warn where the same keys say something else about a file that is shorter."""
    limit, held_out = (getattr(dataset, key, None) for key in ("limit", "held_out"))
    if limit is not None:
        log.warning("dataset.limit=%d: rows behind it would move up; train with dataset.limit=%d", limit, limit - gone)
    if held_out:
        log.warning("dataset.held_out=%d: is drawn anew, so other rows are held out of what is left", held_out)
    if getattr(dataset, "truth_column", None) is not None and all(record.id.isdecimal() for record in records):
        log.warning(
            "dataset.truth_column=%s: rows that go by their number have another one in what is left; ask about it with "
            "questions that name these, or with rows that have ids",
            dataset.truth_column,
        )


def _run(patterns: list[str]) -> Path:
    """The one run that is named."""
    found = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))]
    folders = [one.parent if one.suffix == ".zarr" else one for one in found]
    runs = list(dict.fromkeys(one for one in folders if any((one / name).exists() for name in (STORE, SELF_INFLUENCE))))
    if len(runs) != 1:
        raise UserError(
            f"drop: needs one run of attribute.py, and runs={patterns} names {len(runs)}; give runs=[FOLDER]"
        )
    return runs[0]


def _dataset(run: Path) -> Any:
    """The data set that a run was about, as its configuration describes it."""
    file = run / CONFIG
    if not file.exists():
        raise UserError(f"{run}: has no {CONFIG}, so its training file is not known; name a folder that a run left")
    values = read_settings(file)
    node = None if values.get("products") is not None else values.get("dataset")
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{file}: names no data set whose rows could be dropped")
    checker = Checker(lambda path: str(file))
    cls = checker.target(node, ("dataset",))
    if cls is Handed:
        if not Path(str(node["path"])).exists():
            raise UserError(
                f"{run}: its training rows were in memory, so there is no file to write again; leave rows out there "
                "(rows.csv has them by value), or hand over a file (tdaexp.attribute(model, 'FILE', …))"
            )
        cls, node = Text, {**node, "_target_": f"{Text.__module__}.{Text.__qualname__}"}
    dataset = checker.build(cls, node, ("dataset",))
    if not hasattr(dataset, "train_records"):
        raise UserError(f"{file}: its data are no texts, so there is no training file to write again")
    return dataset


def _check_same(run: Path, records: list[Record]) -> None:
    """Refuse training data that changed since the run: its rows would go by other scores.

    Of a run that found its pairs among all rows (`candidates=best`) the found ones alone are known.
    """
    texts = texts_beside(run / STORE)
    known = {**texts.get("train", {}), **texts.get("document", {})}
    there = {one.id: one.text for one in records}
    wanted = set(_scored(run)["row"]) if _found_pairs(run) else there.keys()
    nothing = Passage("", "")
    changed = sorted(name for name in wanted if known.get(name, nothing).whole.strip() != there.get(name))
    if changed:
        raise UserError(
            f"{run}: its training data changed since (e.g. row '{changed[0]}'), so its scores are not about the rows "
            "that are there now; run attribute.py again"
        )


def _found_pairs(run: Path) -> bool:
    candidates = read_settings(run / CONFIG).get("candidates", {})
    named = isinstance(candidates, dict) and candidates.get("_target_") == f"{Best.__module__}.{Best.__qualname__}"
    return named and not (run / SELF_INFLUENCE).exists()


def _scored(run: Path) -> pd.DataFrame:
    """What each training row that the run scored did to its questions; pieces of a text are summed."""
    return row_table(by_document(influence.load(run / STORE)), None)


def _itself(run: Path, rows: list[str]) -> pd.Series:
    """Self-influence of the training rows; that of pieces is refused, as it does not add up to their row's."""
    if not (run / SELF_INFLUENCE).exists():
        raise UserError(
            f"drop_by=self: {run} has no self-influence; run its attribute.py again with self_influence=true"
        )
    store = influence.load(run / SELF_INFLUENCE)
    found = totals(store)
    if pieces := sorted(found.keys() - set(rows)):
        raise UserError(
            f"drop_by=self: {run} has the self-influence of pieces (e.g. '{pieces[0]}'), whose sum is not that of the "
            "whole row; run attribute.py again without dataset.chunk"
        )
    return pd.Series(found)


def _next_to_questions(run: Path, by: str) -> pd.Series:
    """By training row the mean of its scores over the questions; pieces of a text are summed."""
    if not (run / STORE).exists():
        raise UserError(f"drop_by={by}: {run} was asked no question; take drop_by=self, or a run with questions")
    store = influence.load(run / STORE)
    if "candidate" not in store.dims:
        raise UserError(f"drop_by={by}: {run} decomposes a training and scores no rows by question; name another run")
    table = _scored(run)
    return pd.Series(table["mean"].to_numpy(), table["row"])


def _write(dataset: Any, records: list[Record], gone: set[str], folder: Path) -> Path:
    """The training file without the rows, of its own kind where that can be; returns its path."""
    path = getattr(dataset, "path", None)
    if path is not None and all(
        record.where is not None and record.where.file == str(Path(path)) for record in records
    ):
        rows = {record.where.row for record in records if record.id in gone and record.where is not None}
        target = folder / f"{Path(path).stem}-kept{Path(path).suffix}"
        if rewritten(Path(path), getattr(dataset, "unit", "line"), rows, target, getattr(dataset, "split", "train")):
            return target
    target = folder / "train-kept.jsonl"
    log.warning("%s: has ids, prompts and completions (or messages) alone; other columns of the data are lost", target)
    written([record for record in records if record.id not in gone], target)
    return target
