"""The mirror in wandb: one run for one job, offline unless asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdaexp.report.loggers import RunLogger, Settings
from tdaexp.report.mirrored import Mirrored
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import git_commit

if TYPE_CHECKING:
    import pandas as pd


class WandbLogger(RunLogger):
    """One wandb run; final values go into its summary, steps into its history. `told` is all that it was told."""

    told: Mirrored

    def __init__(self, run: Any, texts: bool, told: Mirrored) -> None:
        self.run, self.texts, self.told = run, texts, told

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a point of a curve when there is a step, else final values."""
        if step is None:
            self.run.summary.update(dict(metrics))
            self.told.metrics |= metrics
        else:
            # our own axis: wandb drops points whose global step goes backwards
            self.run.log({**metrics, "step": step})

    def log_images(self, images: Mapping[str, Path]) -> None:
        """Log pictures as images."""
        import wandb

        self.run.log({name: wandb.Image(str(path)) for name, path in images.items()})
        self.told.images += images

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log the table."""
        import wandb

        # Given as rows: from a data frame wandb infers types cell by cell, which takes seconds.
        plain = table.astype(object).where(table.notna(), None)
        rows = wandb.Table(columns=list(table.columns), data=plain.values.tolist(), allow_mixed_types=True)
        self.run.log({name: rows})
        self.told.tables.append(name)


@contextlib.contextmanager
def open_wandb(
    settings: Settings, folder: Path, config: Mapping[str, Any], group: str | None, name: str
) -> Iterator[WandbLogger]:
    """Open a wandb run for the length of a block; arguments as for `loggers.open_logger`.

    Errors (UserError): wandb refuses, for want of a login or of the network.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    values = {**config, "git_commit": git_commit()}
    try:
        run = wandb.init(
            dir=folder,
            mode=settings.mode,  # type: ignore[arg-type]
            project=settings.project,
            entity=settings.entity,
            group=settings.group or group,
            tags=list(settings.tags),
            name=name,
            config=values,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_code=True),
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"logger=wandb: {reason}; try logger.mode=offline or logger=none") from error
    run.define_metric("*", step_metric="step")
    online = settings.mode == "online"
    told = Mirrored(
        id=run.id,
        project=settings.project,
        entity=run.entity if online else settings.entity,
        name=name,
        group=settings.group or group,
        offline=not online,
        config=values,
    )
    code = 1
    try:
        yield WandbLogger(run, (not online) if settings.texts is None else settings.texts, told)
        code = 0
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        run.finish(exit_code=code)
    if settings.mode != "disabled":
        told.write(folder)
