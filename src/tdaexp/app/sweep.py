"""What runs leave for others to find: one row per job, the table of a sweep, and finished runs by subject."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tdaexp import influence
from tdaexp.runtime import stop
from tdaexp.runtime.csvs import csv_text
from tdaexp.runtime.files import CHECKPOINTS, SELF_INFLUENCE, locked, write_json, write_text
from tdaexp.runtime.secrets import masked

log = logging.getLogger(__name__)
ROW = "row.json"
TABLE = "sweep.csv"
STORE = "influence.zarr"
LEFT = {"train": (CHECKPOINTS,), "attribute": (STORE, "report.html"), "evaluate": ("report.html",)}
"""What a job of a stage leaves in its folder, beside its metrics."""
METRICS = "metrics.json"
PLANNED = "jobs.json"
SIGN = ".stop"
BESIDE = ("JoblibLauncher", "LocalLauncher")
"""Launchers whose jobs run in processes of this machine, which end together."""


@dataclass(frozen=True)
class Planned:
    """A job of a sweep before it starts; fields as of its row."""

    stage: str
    fingerprint: str
    subject: str
    overrides: list[str]


@dataclass
class Row:
    """One job: `status` running | done | failed | stopped, `seconds` of wall time, `command` runs this job again.

    `fingerprint` is of what was asked, `subject` of the model and data set alone, `code` of what computed the answer.
    `choices` are those of the groups that were read (`method`: `ekfac`).
    """

    stage: str
    name: str
    fingerprint: str
    subject: str
    command: str
    folder: str
    job: int | None = None
    status: str = "running"
    overrides: str = ""
    error: str = ""
    seconds: float = 0.0
    code: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)

    def write(self, sweep: Path | None) -> None:
        """Write the row into its run folder, then bring the sweep's table up to date."""
        self.error = masked(self.error)
        write_json(Path(self.folder) / ROW, asdict(self))
        if sweep is not None:
            write_table(sweep)


def read_row(folder: Path) -> Row | None:
    """Return a run folder's row; None where there is none that can be read (such a run is not done)."""
    try:
        return Row(**json.loads((folder / ROW).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def finished(row: Row) -> Row | None:
    """The row of an earlier run of the same job in its folder, where all that the job leaves is there and intact.

    What lies there decides, not what the row says: its run may have been killed behind its last file, and a store may
    have been deleted or damaged since.
    """
    folder = Path(row.folder)
    known = read_row(folder)
    if known is None or (known.fingerprint, known.code) != (row.fingerprint, row.code):
        return None
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    itself = [key.startswith("self_influence/") for key in metrics]
    alone = all(itself) or all(key.startswith("index/") for key in metrics)  # of a run without queries, or of a share
    left = [] if metrics and alone else [*LEFT[row.stage]]
    if not all(_left(folder / name) for name in [*left, *([SELF_INFLUENCE] if any(itself) else [])]):
        return None
    return known if known.status == "done" else replace(known, status="done", error="", metrics=metrics)


def _left(path: Path) -> bool:
    """Whether something that a job leaves is there and intact."""
    if path.name in (STORE, SELF_INFLUENCE):
        return influence.intact(path)
    if path.name == CHECKPOINTS:
        try:
            return all(Path(folder).is_dir() for folder in json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return False
    return path.exists()


def sign(sweep: Path, launcher: str) -> Path | None:
    """The file by which jobs that run beside each other learn that the sweep is to end; None for other launchers."""
    return sweep.absolute() / SIGN if launcher.endswith(BESIDE) else None


def rows(folder: Path) -> list[Row]:
    """All rows below a folder, by job number, then folder."""
    found = (read_row(file.parent) for file in folder.rglob(ROW))
    return sorted((row for row in found if row), key=lambda row: (row.job is not None, row.job or 0, row.folder))


def write_table(sweep: Path) -> None:
    """Rebuild `sweep.csv` from the rows of its jobs: one line each, one column per metric."""
    with locked(sweep / TABLE):
        listed = rows(sweep)
        metrics = list(dict.fromkeys(name for row in listed for name in row.metrics))
        header = ["job", "status", "overrides", "error", "seconds", "folder", "command", *metrics]
        lines: list[list[Any]] = []
        for row in listed:
            values = [row.metrics.get(name, "") for name in metrics]
            start = [
                row.job,
                row.status,
                row.overrides,
                row.error,
                f"{row.seconds:.1f}",
                row.folder,
                row.command,
            ]
            lines.append([*start, *values])
        write_text(sweep / TABLE, csv_text(header, lines))


def open_sweep(sweep: Path, keep: set[str], planned: Sequence[Planned]) -> None:
    """Begin a sweep: earlier rows are forgotten, but for those whose fingerprint is in `keep`; its jobs are noted."""
    (sweep / SIGN).unlink(missing_ok=True)
    write_json(sweep / PLANNED, [asdict(job) for job in planned])
    for row in rows(sweep):
        if row.fingerprint not in keep:
            (Path(row.folder) / ROW).unlink(missing_ok=True)


def close_sweep(sweep: Path, jobs: int) -> int:
    """End a sweep: a job that never came to its end was stopped or failed. Returns how many of `jobs` are not done."""
    (sweep / SIGN).unlink(missing_ok=True)
    listed, asked = rows(sweep), stop.requested()
    for row in listed:
        if row.status == "running":
            row.status, row.error = "failed", "ended before its time (killed, or out of memory)"
            if asked is not None:
                row.status, row.error = "stopped", str(asked)
            row.write(None)
    if listed:
        write_table(sweep)
    done = sum(row.status == "done" for row in listed)
    return max(jobs, len(listed)) - done
