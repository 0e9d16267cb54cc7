"""What a comparison, or a leaderboard from a file, leaves in wandb beside its run: a workspace or a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import xarray as xr

from tdaexp.app.config import EvaluateConfig
from tdaexp.report.dashboards.leaderboard import TABLE, as_leaderboard, markdown, read_leaderboard, report
from tdaexp.report.dashboards.library import deliver
from tdaexp.report.dashboards.workspace import curves, workspace
from tdaexp.report.loggers import RunLogger
from tdaexp.report.mirrored import Mirrored, read_mirrored
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_json, write_text
from tdaexp.runtime.progress import doing

log = logging.getLogger(__name__)


def runs_in_wandb(config: EvaluateConfig) -> list[Mirrored]:
    """The runs of a workspace, those that wandb was told of to their end; the others are left out with a line.

    Errors (UserError): fewer than two, or runs of another project or entity than the logger's.
    """
    found = []
    for folder in dict.fromkeys(store.parent for store in config.found.stores):
        told = read_mirrored(folder)
        if told is None:
            log.warning("%s: not in the dashboard, wandb was not told of it (logger=wandb)", folder)
            continue
        _check_place(told, config, folder)
        if config.logger.mode == "online" and told.offline and not list(folder.glob("wandb/offline-run-*/*.synced")):
            log.warning("%s: its run is not in wandb yet: wandb sync %s/wandb/offline-run-*", folder, folder)
        found.append(told)
    if len(found) < 2:
        raise UserError(
            f"dashboard=workspace: sets runs beside each other, and wandb knows {len(found)} of those in runs; name a "
            "sweep that ran with logger=wandb in runs=[multirun/NAME]"
        )
    return found


def _check_place(told: Mirrored, config: EvaluateConfig, folder: Path) -> None:
    for key in ("project", "entity"):
        theirs, ours = getattr(told, key), getattr(config.logger, key)
        if theirs != ours and None not in (theirs, ours):
            raise UserError(
                f"dashboard=workspace: the run in {folder} is of {key} {theirs}; add logger.{key}={theirs}, or leave "
                "it out of runs"
            )


def show_comparison(
    config: EvaluateConfig,
    folder: Path,
    logger: RunLogger,
    runs: Sequence[Mirrored],
    metrics: Mapping[str, float],
    datasets: Mapping[str, xr.Dataset],
) -> None:
    """Make the dashboard of a comparison: a workspace of its `runs`, or a report of its flat `metrics` and of what the
    stores, by label, cost.
    """
    if config.dashboard == "report":
        first = next(iter(datasets))  # of a single store the metrics' names have no label
        named = {key if key.count("/") > 1 else f"{first}/{key}": value for key, value in metrics.items()}
        costs = {label: sum(one.attrs["cost"].values()) for label, one in datasets.items() if one.attrs.get("cost")}
        _report(as_leaderboard(named, costs), "Methods compared", folder, logger)
        return
    doing("making the dashboard")
    for name, points in curves(runs).items():
        logger.log_table(name, points)
    own = _told(logger)
    deliver(workspace(runs, own), own, folder)


def show_leaderboard(config: EvaluateConfig, folder: Path, logger: RunLogger) -> dict[str, float]:
    """Make the report of a leaderboard from a file; returns how much is on it."""
    table = read_leaderboard(Path(str(config.leaderboard)))
    counts = {f"{name}s": float(table[name].nunique()) for name in ("method", "subject", "metric")}
    write_json(folder / "metrics.json", counts)
    logger.log_metrics(counts)
    _report(table, "Leaderboard", folder, logger)
    return counts


def _report(table: pd.DataFrame, title: str, folder: Path, logger: RunLogger) -> None:
    doing("making the report")
    text = "\n\n".join(f"## {subject}\n\n{rows}" for subject, rows in markdown(table).items())
    write_text(folder / "leaderboard.md", f"# {title}\n\n{text}\n")
    logger.log_table(TABLE, table)
    own = _told(logger)
    deliver(report(table, own, title), own, folder)


def _told(logger: RunLogger) -> Mirrored:
    if logger.told is None:
        raise UserError("dashboard: needs logger=wandb")
    if not logger.told.offline and not logger.told.entity:
        raise UserError("dashboard: wandb names no entity for this run; add logger.entity=NAME")
    return logger.told
