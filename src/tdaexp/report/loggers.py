"""Mirrors of a run: wandb (offline unless asked), a CSV file, or nothing. The run folder is the truth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tdaexp.report.wandb_places import within
from tdaexp.runtime.csvs import csv_line, frame_csv
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_text
from tdaexp.runtime.fingerprint import git_commit

if TYPE_CHECKING:
    import pandas as pd


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


class WandbLogger(RunLogger):
    """One wandb run; final values go into its summary, steps into its history."""

    def __init__(self, run: Any, texts: bool) -> None:
        self.run, self.texts = run, texts

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a point of a curve when there is a step, else final values."""
        if step is None:
            self.run.summary.update(dict(metrics))
        else:
            # our own axis: wandb drops points whose global step goes backwards
            self.run.log({**metrics, "step": step})

    def log_images(self, images: Mapping[str, Path]) -> None:
        """Log pictures as images."""
        import wandb

        self.run.log({name: wandb.Image(str(path)) for name, path in images.items()})

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log the table."""
        import wandb

        # Given as rows: from a data frame wandb infers types cell by cell, which takes seconds.
        plain = table.astype(object).where(table.notna(), None)
        rows = wandb.Table(columns=list(table.columns), data=plain.values.tolist(), allow_mixed_types=True)
        self.run.log({name: rows})


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
        with within(folder, settings.mode != "online"), _wandb(settings, folder, config, group, name) as logger:
            yield logger
    else:
        yield CsvLogger(folder) if settings.kind == "csv" else RunLogger()


@contextlib.contextmanager
def _wandb(
    settings: Settings, folder: Path, config: Mapping[str, Any], group: str | None, name: str
) -> Iterator[RunLogger]:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            dir=folder,
            mode=settings.mode,  # type: ignore[arg-type]
            project=settings.project,
            entity=settings.entity,
            group=settings.group or group,
            tags=list(settings.tags),
            name=name,
            config={**config, "git_commit": git_commit()},
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_code=True),
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"logger=wandb: {reason}; try logger.mode=offline or logger=none") from error
    run.define_metric("*", step_metric="step")
    code = 1
    try:
        yield WandbLogger(run, settings.mode != "online" if settings.texts is None else settings.texts)
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        run.finish(exit_code=code)
