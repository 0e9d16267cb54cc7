"""Mirrors of a run: wandb (offline unless asked), a CSV file, or nothing. The run folder is the truth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tdaexp.report.wandb_places import within
from tdaexp.runtime.csvs import csv_line, frame_csv
from tdaexp.runtime.files import write_text

if TYPE_CHECKING:
    import pandas as pd

    from tdaexp.report.mirrored import Mirrored


class Settings(Protocol):
    """The keys of the group `logger`."""

    kind: str
    mode: str
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    texts: bool | None


class RunLogger:
    """The mirror that keeps nothing; its methods are what every mirror offers. `texts`: does it take people's texts?"""

    texts = True
    told: Mirrored | None = None  # of a mirror in wandb, what it was told

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record flat names and numbers, as final values or at a step."""

    def log_images(self, images: Mapping[str, Path]) -> None:
        """Record pictures (PNG files) by name."""

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Record a table, such as the top-k training texts of every query."""


class CsvLogger(RunLogger):
    """`log.csv` in the run folder, one line per number, and tables as `tables/NAME.csv`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.csv").write_text("step,name,value\n", encoding="utf-8")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line per metric; the step is empty for final values."""
        with (self.folder / "log.csv").open("a", encoding="utf-8", newline="") as stream:
            stream.writelines(csv_line(("" if step is None else step, name, value)) for name, value in metrics.items())

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Write the table next to the log."""
        (self.folder / "tables").mkdir(exist_ok=True)
        write_text(self.folder / "tables" / f"{name}.csv", frame_csv(table))


@contextlib.contextmanager
def open_logger(
    settings: Settings, *, folder: Path, config: Mapping[str, Any], group: str | None, name: str
) -> Iterator[RunLogger]:
    """Mirror a run for the length of a block, and end the mirror whatever happens in it.

    Args:
        settings: the group `logger`.
        folder: run folder; nothing is written outside it.
        config: resolved configuration, recorded with the git commit.
        group: name of the sweep, used unless `settings.group` is given.
        name: name of the run.
    """
    if settings.kind == "wandb":
        from tdaexp.report.wandb_logger import open_wandb

        with within(folder, settings.mode != "online"), open_wandb(settings, folder, config, group, name) as logger:
            yield logger
    else:
        yield CsvLogger(folder) if settings.kind == "csv" else RunLogger()
