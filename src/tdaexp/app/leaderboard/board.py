"""The leaderboard: methods with a sweep of their settings, on several subjects, judged by models trained again.

    python evaluate.py experiment=leaderboard

A typed list of cells, as a sweep is a product and damping has another key in each method. A table that ranks defaults
ranks luck, so each method stands with its best setting and with its default. What cannot be run is marked with the
reason, and the rest goes on. Cost: of a cell what its run took beside the model, as `cost.json` says.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from tdaexp import influence
from tdaexp.app.call import CONF
from tdaexp.app.leaderboard.cells import Cell, Entry, Subject, cells, check_entries, evaluating
from tdaexp.app.stages.answering import beside
from tdaexp.app.stages.retraining import judged_by_retraining
from tdaexp.metrics.retrained import Judged
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.report.findings import Findings
from tdaexp.report.leaderboard import leaderboard_findings
from tdaexp.runtime.cache import at_work
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track
from tdaexp.trust.check import FILE, from_json

SMOOTH = "linearity"
"""The check that says how smooth a training is."""
PATIENCE = 10.0
"""Seconds in which a process may stop by itself."""
COLUMNS = ["subject", "seed", "method", "setting", "metric", "query_set", "value", "low", "high", "queries",
           "cost_seconds", "failed"]  # fmt: skip


@dataclass
class Leaderboard(Analysis):
    """Keys: `subjects` and `entries` (methods) by name; `paths` of files that lie outside (null: subjects that need one
    are marked); `folder` of the cells' runs; `jobs` processes; `config_dir` with methods of one's own (null: none).
    """

    needs_runs: ClassVar[bool] = False

    subjects: dict[str, Subject] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    paths: dict[str, Any] = field(default_factory=dict)
    folder: str = "multirun/leaderboard"
    jobs: int = 2
    config_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse names that nothing stands for."""
        check_entries(self.entries, self.subjects, self.paths)
        if not self.subjects or not self.entries:
            raise UserError("analysis.subjects, analysis.entries: are empty; name at least one of each")
        if self.jobs < 1:
            raise UserError(f"analysis.jobs={self.jobs}: must be at least 1")

    def run(self, evidence: Evidence) -> Findings:
        """Run what is missing, judge all of it, and put it on one page."""
        rows = [row for rows in self._all(evidence.config.cache_dir) for row in rows]
        return leaderboard_findings(pd.DataFrame(rows, columns=COLUMNS))

    def _all(self, cache: str) -> Iterator[list[dict[str, Any]]]:
        """Rows of each subject and seed; these are what processes share out."""
        todo = [(name, seed) for name, subject in self.subjects.items() for seed in subject.seeds]
        pool = ProcessPoolExecutor(self.jobs, mp_context=multiprocessing.get_context("spawn"))
        try:
            waiting = {pool.submit(self.of_subject, *one, cache): place for place, one in enumerate(todo)}
            found = {}
            for done in track(as_completed(waiting), "leaderboard", len(todo)):
                found[waiting[done]] = self._rows(done, *todo[waiting[done]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(multiprocessing.active_children())
            raise
        pool.shutdown()
        yield from (found[place] for place in sorted(found))

    def _rows(self, done: Future[list[dict[str, Any]]], name: str, seed: int) -> list[dict[str, Any]]:
        """What a process found, or of each method that it ended before its time."""
        try:
            return done.result()
        except BrokenProcessPool:
            why = "a process ended before its time (killed, or out of memory); run the same command again"
            return [
                {"subject": name, "seed": seed, "method": one, "setting": "", "failed": why} for one in self.entries
            ]

    def of_subject(self, name: str, seed: int, cache: str) -> list[dict[str, Any]]:
        """Rows of one subject with one seed."""
        subject, common = self.subjects[name], {"subject": name, "seed": seed}
        path = None if subject.needs is None else self.paths[subject.needs]
        if subject.needs is not None and path is None:
            missing = f"needs a file: analysis.paths.{subject.needs}=PATH"
            return [{**common, "method": entry, "setting": "", "failed": missing} for entry in self.entries]
        mine = cells(subject, seed, self.entries, name, path, Path(self.folder))
        failed = {cell.label: why for cell in mine if (why := cell.run(CONF, cache, self.config_dir))}
        stores = {cell.label: influence.load(cell.store) for cell in mine if cell.label not in failed}
        judged: list[Judged] = []
        try:
            with at_work(Path(cache)):
                judged = judged_by_retraining(evaluating(subject, seed, path, CONF, cache), stores, failed)
        except UserError as error:
            failed |= dict.fromkeys(stores, str(error))
        of_label = {cell.label: cell for cell in mine}
        rows = [{**common, **_named(of_label[label]), "failed": why} for label, why in failed.items()]
        rows += [{**common, **_told(one, of_label.get(one.label))} for one in judged]
        return rows + [
            {**common, **row}
            for cell in mine
            if cell.label in stores
            for row in _smooth(cell, stores[cell.label].sizes["query"])
        ]


def _end(processes: list[BaseProcess], patience: float = PATIENCE) -> None:
    """End processes: asked first, as a cell stops between blocks; then at once, as what is written is written whole."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()


def _told(one: Judged, cell: Cell | None) -> dict[str, Any]:
    """A row of what was judged of a cell, or of a control (None)."""
    named = {"method": one.label, "setting": ""} if cell is None else _named(cell)
    cost = math.nan if cell is None else _seconds(cell)
    interval = {"value": one.interval.value, "low": one.interval.low, "high": one.interval.high}
    place = {"metric": one.metric, "query_set": one.query_set, "queries": one.queries}
    return {**named, **interval, **place, "cost_seconds": cost, "failed": ""}


def _smooth(cell: Cell, queries: int) -> Iterator[dict[str, Any]]:
    """Of a method that has tried real trainings, how much of them its derivative misses: is the subject smooth?"""
    for check in from_json(beside(cell.store, FILE), str(cell.store.parent / FILE)):
        if check.name == SMOOTH and check.value is not None:
            place = {"metric": SMOOTH, "query_set": "every", "queries": queries}
            yield {**_named(cell), "value": check.value, **place, "cost_seconds": _seconds(cell), "failed": ""}


def _seconds(cell: Cell) -> float:
    """What a cell's run took, without the model, which whichever cell came first has trained, and checks of trust."""
    taken = beside(cell.store, "cost.json")
    return float(sum(seconds for stage, seconds in taken.items() if stage not in ("model", "trust")))


def _named(cell: Cell) -> dict[str, str]:
    return {"method": cell.entry, "setting": cell.setting}
