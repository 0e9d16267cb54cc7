"""A stage at work: in this process, or in the several that the trainer asks for."""

from __future__ import annotations

import contextlib
import importlib
import logging
import logging.config
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdaexp.app.job import Job
from tdaexp.app.readable import choices_told
from tdaexp.metrics.judging_settings import BY_RETRAINING
from tdaexp.metrics.settings import trains_again
from tdaexp.report.loggers import RunLogger, open_logger
from tdaexp.runtime import ranks, stop
from tdaexp.runtime.cache import at_work
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import PACKAGES, deciding, version
from tdaexp.runtime.heartbeat import heartbeat
from tdaexp.runtime.launch import Team, run_together
from tdaexp.runtime.oom_split import plain_memory_errors
from tdaexp.runtime.surroundings import from_outside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What to run: a stage's function in `module` on a job, with its results in `folder`.

    `name` is the run's and `group` the sweep's name for people; `logging_setup` that of process 0, as
    `logging.config.dictConfig` takes it.
    """

    stage: str
    module: str
    job: Job
    folder: Path
    name: str
    group: str | None = None
    logging_setup: Any = field(default=None, compare=False)

    def __call__(self) -> dict[str, float]:
        """Seed, open the mirror, run the stage; returns its metrics. Only process 0 has a mirror."""
        config, stage = self.job.config, getattr(importlib.import_module(self.module), self.stage)
        seed(config.seed, config.trainer.threads)
        looked_after = getattr(config, "cache", None)  # evaluate's
        using = at_work(Path(config.cache_dir), alone=looked_after == "prune", create=looked_after is None)
        if not ranks.current().first:
            with plain_memory_errors(), using:
                stage(config, self.folder, RunLogger())
            return {}
        alone = ranks.current().world == 1  # several processes end together, where they meet
        values = {**self.job.values, "choice": choices_told(self.job.choices)}
        mirror = open_logger(config.logger, folder=self.folder, config=values, group=self.group, name=self.name)
        ending = stop.at_once() if alone else contextlib.nullcontext()
        with plain_memory_errors(), using, heartbeat(self.folder), ending, mirror as logger:
            metrics: dict[str, float] = stage(config, self.folder, logger)
        return metrics


def together(work: Work) -> dict[str, float]:
    """Run the stage in as many processes as the trainer says; returns its metrics. Errors as for `run_together`."""
    trainer = work.job.config.trainer
    outside = from_outside()
    if trainer.strategy == "single":
        if outside:
            raise UserError(
                f"{outside} started several processes, but trainer.strategy=single; add trainer=ddp or fsdp"
            )
        return work()
    if work.stage == "evaluate" and (trainer.strategy != "ddp" or not trains_again(work.job.config.metric)):
        name = f"trainer={trainer.strategy}"
        raise UserError(
            f"{name}: evaluate reads what is stored, in one process; leave {name} out (trainer=ddp shares out what "
            f"{', '.join(f'metric={one}' for one in BY_RETRAINING)} train)"
        )
    import torch

    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    identity = {**deciding(work.job.values), "packages": {name: version(name) for name in PACKAGES}}
    found: dict[str, float] = run_together(Team(accelerator, trainer.devices, trainer.nodes), identity, _member, work)
    return found


def _member(work: Work) -> dict[str, float]:
    """One process of several. Process 0 logs as a process alone would; of the others only errors are heard."""
    me = ranks.current()
    if me.first and work.logging_setup is not None:
        logging.config.dictConfig(work.logging_setup)
    elif not me.first:
        logging.basicConfig(level=logging.ERROR, format=f"process {me.rank}: %(message)s", force=True)
    return work()


def seed(number: int, threads: int) -> None:
    """Seed every generator that a stage may draw from, and set the number of CPU threads (0 = leave it)."""
    import random

    import numpy as np
    import torch

    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    if threads:
        torch.set_num_threads(threads)
