"""One job from its composed configuration to its row: the function that Hydra's launchers call."""

from __future__ import annotations

import logging
import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tdaexp.app import sweep
from tdaexp.app.found import Found, find_stores
from tdaexp.app.job import Job, build, slug
from tdaexp.app.origin import OriginOf, shown
from tdaexp.app.readable import run_name
from tdaexp.app.work import Work, together
from tdaexp.runtime import stop
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import disk_full, full_place, write_text
from tdaexp.runtime.silence import never_silent
from tdaexp.runtime.stop import INTERRUPTED, Lost
from tdaexp.runtime.surroundings import outer_rank

log = logging.getLogger(__name__)
FAILED, MISTAKE = 1, 2

# Launchers in other processes import this module before they name a job's folder.
OmegaConf.register_new_resolver(
    "job_folder", lambda number, overrides: f"{number}-{slug(overrides)}".rstrip("-"), replace=True
)


@dataclass(frozen=True)
class Task:
    """The task function of one stage; picklable, so that launchers may call it in other processes.

    `module` holds the stages as functions, `command` is how this program was called, up to the overrides. `group` is
    what the sweep that the job belongs to is called (None: it belongs to none), and `swept` are its keys.
    """

    stage: str
    command: tuple[str, ...]
    packages: tuple[str, ...]
    module: str
    group: str | None = None
    swept: tuple[str, ...] = ()
    codes: list[int] = field(default_factory=list, compare=False)
    home: int = field(default_factory=os.getpid, compare=False)

    def __call__(self, config: DictConfig) -> int:
        """Run the job in the folder that Hydra made for it; never raises but where the run is to end.

        Returns the exit code, and keeps it in `codes` for a caller in the same process.
        """
        hydra: Any = HydraConfig.get()
        if os.getpid() == self.home:
            stop.check()
            self.codes.append(self._job(config))
            return self.codes[-1]
        stop.hear()
        sign = sweep.sign(Path(hydra.sweep.dir), hydra.launcher._target_)
        try:
            with stop.all_together(sign), never_silent():
                stop.check()
                return self._job(config)
        except KeyboardInterrupt as error:
            if sign is None:
                raise  # tells a cluster that the job has not come to its end
            return stop.exit_code(error)  # the process that waits for the jobs is told by the sign

    def follow(self, job: Job, folder: Path) -> int:
        """Help the process that runs the job, as one that torchrun or srun started beside it; returns the exit code."""
        logging.basicConfig(level=logging.ERROR, format=f"process {outer_rank()}: %(message)s")
        try:
            together(Work(self.stage, self.module, job, folder.absolute(), self._name(job)))
        except Exception as error:
            return report(error, folder)
        return 0

    def _job(self, config: DictConfig) -> int:
        hydra: Any = HydraConfig.get()
        swept = hydra.mode == RunMode.MULTIRUN
        folder = Path(hydra.runtime.output_dir)
        top = Path(hydra.sweep.dir).absolute() if swept else None
        overrides = [text.removeprefix("++") for text in hydra.overrides.task]
        try:
            job = build(self.stage, overrides, config, self.packages, OriginOf([], []), hydra)
        except UserError as error:
            return report(error, folder)
        row = sweep.Row(
            stage=self.stage,
            name=job.name,
            fingerprint=job.fingerprint,
            subject=job.subject,
            command=shlex.join([*self.command, *overrides]),
            folder=shown(folder),
            job=hydra.job.num if swept else None,
            overrides=" ".join(overrides),
            code=job.code,
            choices=job.chosen,
        )
        if getattr(job.config, "resume", False) and (known := sweep.finished(row)) is not None:
            known.write(top)
            log.info("finished before, skipped: %s", row.folder)
            return 0
        return self._run(job, row, folder, top)

    def _run(self, job: Job, row: sweep.Row, folder: Path, top: Path | None) -> int:
        start, code = time.monotonic(), FAILED
        row.write(top)
        try:
            write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(job.values)))
            row.metrics = self._stage(job, folder)
            row.status, code = "done", 0
        except KeyboardInterrupt as error:
            row.status, row.error = "stopped", str(error) or INTERRUPTED
            raise
        except (Exception, SystemExit) as error:
            if not isinstance(error, UserError) and isinstance(asked := stop.requested(), stop.Stopped):
                row.status, row.error = "stopped", str(asked)  # what a library made of the signal
                raise asked from error
            if isinstance(error, SystemExit):
                row.status, row.error = "stopped", f"ended from outside (exit code {error.code})"  # queued again
                raise
            row.status, row.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, (UserError, Lost)):
                row.error = str(error)
            code = report(error, folder)
        finally:
            row.seconds = time.monotonic() - start
            self._close(row, top)
        return code

    def _stage(self, job: Job, folder: Path) -> dict[str, float]:
        """Run the stage in this process or in several; its metrics go into the row."""
        if self.stage == "evaluate":
            job.config.found = self._found(job)
        logging_setup = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
        work = Work(self.stage, self.module, job, folder.absolute(), self._name(job), self.group, logging_setup)
        log.info("%s %s in %s", self.stage, job.name, shown(folder))
        return together(work)

    def _name(self, job: Job) -> str:
        return run_name(self.stage, job.choices, job.overrides, self.swept)

    @staticmethod
    def _found(job: Job) -> Found:
        """The stores that the job looks at; some analyses, and another program's scores, may do without."""
        given, analysis = job.config.runs, job.config.analysis
        alone = (
            "cache",
            "drop",
            "leaderboard",
        )  # whoever drops rows of a run, perhaps one without questions, finds them
        if job.config.serve or any(getattr(job.config, key) is not None for key in alone):
            return Found()
        if analysis is not None and not analysis.needs_runs and not given:
            return Found()
        try:
            return find_stores(given, job.subject, job.chosen, studies=bool(job.config.over))
        except UserError:
            if given or not job.config.scores:
                raise
            return Found()

    @staticmethod
    def _close(row: sweep.Row, top: Path | None) -> None:
        try:
            row.write(top)
        except OSError as error:
            # on a full disk the row stays "running": the sweep counts it as failed, `resume` runs it again
            log.warning("%s: could not be written (%s)", sweep.ROW, error.strerror)


def report(error: Exception, folder: Path) -> int:
    """Log what went wrong, in one line unless it is a fault of this program; returns the exit code."""
    if isinstance(error, UserError):
        log.error("error: %s", error)
        return MISTAKE
    if isinstance(error, Lost):
        log.error("error: %s", error)
        return FAILED
    if disk_full(error):
        log.error(
            "error: %s: no space left on the device; nothing computed so far is lost; make room and run the "
            "same command again, it goes on where it stopped (a sweep with resume=true)",
            shown(full_place(error) or folder),
        )
        return FAILED
    log.error("this is a fault of the program, not of your input:", exc_info=error)
    return FAILED
