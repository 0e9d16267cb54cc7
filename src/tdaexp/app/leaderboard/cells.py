"""One cell of the leaderboard: a method with its keys on a subject, run as a person would run it.

Everything is done by the commands themselves, in this process: `attribute.py ... resume=true` in a folder of the cell's
own. So a killed leaderboard goes on at the cell where it stopped, and each line can be typed again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdaexp.app import main
from tdaexp.app.check import Checker, places
from tdaexp.app.compose import open_composer
from tdaexp.app.config import EvaluateConfig
from tdaexp.app.job import resolve
from tdaexp.app.sweep import STORE, read_row
from tdaexp.runtime.errors import UserError

ASKED = ("candidates", "method", "decoding", "stage", "budget")
"""Keys of `attribute.py` alone."""


@dataclass
class Subject:
    """What methods are judged on: `keys` of model, data and training; `seeds` of start and batches; `judged`, what of
    (`metric=[...]` and its keys); `needs`, the name of a file among the leaderboard's `paths`.
    """

    keys: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"distinct": True})
    needs: str | None = None


@dataclass
class Entry:
    """A method: its `keys`, values of those that are swept, and `only`, the subjects that it is for (none: all)."""

    keys: list[str] = field(default_factory=list)
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)

    def settings(self) -> list[dict[str, Any]]:
        """The defaults, and every combination of the swept values."""
        swept = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return [{}, *(one for one in swept if one)]


@dataclass(frozen=True)
class Cell:
    """An entry with one setting on a subject: its options, and the folder where its run lies."""

    entry: str
    setting: str
    options: tuple[str, ...]
    folder: Path

    @property
    def label(self) -> str:
        """What tells it from the subject's other cells."""
        return f"{self.entry} {self.setting}".strip()

    @property
    def store(self) -> Path:
        """Where its answer lies."""
        return self.folder / STORE

    def run(self, conf: Path, cache: str, extra: str | None) -> str:
        """Run it, or find it done; returns what went wrong, "" where nothing did."""
        places = [] if extra is None else [f"--config-dir={extra}"]
        own = (
            "resume=true",
            "logger=none",
            "metric.plots=false",
            "trust=false",
            f"cache_dir={cache}",
            f"hydra.run.dir={self.folder}",
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with _said_in(self.folder / "console.log"):
            code = main("attribute", conf, ["attribute.py", *places, *self.options, *own])
        if code == 0:
            return ""
        row = read_row(self.folder)
        log = (self.folder / "console.log").read_text(encoding="utf-8").strip().splitlines()
        return row.error if row is not None and row.error else (log[-1] if log else f"ended with {code}")


def cells(subject: Subject, seed: int, entries: dict[str, Entry], name: str, path: str | None, top: Path) -> list[Cell]:
    """The cells of a subject with one seed."""
    common = [*subject.keys, f"seed={seed}", f"model.seed={seed}"]
    common += [] if path is None else [f"dataset.path={path}"]
    found = []
    for entry, one in entries.items():
        if one.only and name not in one.only:
            continue
        for setting in one.settings():
            told = [f"{key}={value}" for key, value in setting.items()]
            label = ",".join(text.removeprefix("method.") for text in told)
            folder = top / name / f"seed={seed}" / (f"{entry} {label}".strip().replace("/", "-"))
            found.append(Cell(entry, label, (*common, *one.keys, *told), folder))
    return found


def evaluating(subject: Subject, seed: int, path: str | None, conf: Path, cache: str) -> EvaluateConfig:
    """The configuration of `evaluate.py` for a subject."""
    known = [text for text in subject.keys if not text.startswith(ASKED)]
    options = [*known, f"seed={seed}", f"model.seed={seed}", *subject.judged, "logger=none", f"cache_dir={cache}"]
    options += [] if path is None else [f"dataset.path={path}"]
    with open_composer("evaluate", conf) as composer:
        config = composer.compose(options)
    values = resolve(config, lambda path: "leaderboard")
    built: EvaluateConfig = Checker(lambda path: "leaderboard", places=places(EvaluateConfig)).build(
        EvaluateConfig, values
    )
    return built


@contextlib.contextmanager
def _said_in(file: Path) -> Iterator[None]:
    """Inside the block what is printed and logged goes to a file."""
    root = logging.getLogger()
    before = root.handlers[:]
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(stream))
        stack.enter_context(contextlib.redirect_stderr(stream))
        try:
            yield
        finally:
            root.handlers[:] = before


def check_entries(entries: dict[str, Entry], subjects: dict[str, Subject], paths: dict[str, str | None]) -> None:
    """Refuse (UserError) entries of unknown subjects, subjects without a seed, and files that nobody has named."""
    for name, entry in entries.items():
        for subject in entry.only:
            if subject not in subjects:
                raise UserError(f"analysis.entries.{name}.only: there is no subject '{subject}'; {', '.join(subjects)}")
    for name, one in subjects.items():
        if not one.seeds:
            raise UserError(f"analysis.subjects.{name}.seeds is empty; name at least one, e.g. [0]")
        if one.needs is not None and one.needs not in paths:
            raise UserError(f"analysis.subjects.{name}.needs={one.needs}: is not among analysis.paths")
