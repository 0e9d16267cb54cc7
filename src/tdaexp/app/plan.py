"""What can be known about a command before it runs: its jobs, all of them checked, and its folders."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.app.compose import Composer
from tdaexp.app.job import Job, check, slug
from tdaexp.app.origin import one_line
from tdaexp.app.readable import sweep_name
from tdaexp.app.typed import for_shell, quoted
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

BROUGHT = {"multistage": "toy_msif", "multistage_dot": "toy_msif"}
"""Methods that the default model and data cannot serve, and the experiment that has some for them."""


@dataclass(frozen=True)
class Plan:
    """What a command is going to do, and the overrides that make Hydra do it.

    `folder` is the run folder, or the sweep's; `jobs` is empty when only the sweeper knows them. `launcher` is
    the class that runs the jobs of a sweep, `name` what the sweep
    is called, and `swept` its keys.
    """

    multirun: bool
    resume: bool
    folder: Path
    jobs: list[Job]
    overrides: list[str]
    launcher: str = ""
    name: str | None = None
    swept: tuple[str, ...] = ()


def plan(composer: Composer, stage: str, overrides: Sequence[str], multirun: bool, packages: tuple[str, ...]) -> Plan:
    """Check every job of a command before the first one starts.

    Raises:
        UserError: any mistake in the options or files, or a sweep whose jobs would be the same.
    """
    overrides = composer.spelt(overrides)
    overrides = [*_brought(composer.parse(overrides)), *overrides]
    parsed = composer.parse(overrides)
    swept = [o for o in parsed if o.is_sweep_override()]
    config = composer.compose([str(o.input_line) for o in parsed if o not in swept], multirun=True)
    if multirun or config.hydra.mode == RunMode.MULTIRUN:
        return _plan_sweep(composer, stage, overrides, config, packages)
    if swept:
        key, _, value = str(swept[0].input_line).partition("=")
        raise UserError(
            f"option '{key}={value}': several values need -m (a job each), or {key}=[{value}] for a list, or "
            f"{for_shell(key, value)} for a text with commas"
        )
    job = check(composer, stage, list(overrides), config, packages)
    folder = chosen_folder(config, "run") or f"outputs/{stage}/{job.name}-{job.fingerprint[:8]}"
    given = [*composer.opened(overrides), f"hydra.run.dir={quoted(folder)}"]
    return Plan(False, bool(config.get("resume")), Path(folder), [job], given)


def _brought(parsed: Sequence[Override]) -> list[str]:
    """The experiment that a method needs, where the command chooses neither model nor data; it is said in a line."""
    chosen = {o.key_or_group: str(o.value()) for o in parsed if not o.is_sweep_override()}
    needed = BROUGHT.get(chosen.get("method", ""))
    if needed is None or {"model", "dataset", "experiment"} & set(chosen):
        return []
    print(f"method={chosen['method']} needs two training stages: experiment={needed} is taken", file=sys.stderr)
    return [f"experiment={needed}"]


def _plan_sweep(
    composer: Composer, stage: str, overrides: Sequence[str], config: DictConfig, packages: tuple[str, ...]
) -> Plan:
    """Plan a sweep; its jobs are those of Hydra's basic sweeper, the only one that is let in (`cli.gate`)."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    parsed = composer.parse([*params, *overrides])
    swept = list(dict.fromkeys(o.key_or_group for o in parsed if o.is_sweep_override()))
    constant = [o.key_or_group for o in parsed if o.key_or_group not in swept]
    split = BasicSweeper.split_arguments([o for o in parsed if not o.is_hydra_override()], None)
    listed = [job for batch in split for job in batch]
    jobs = [check(composer, stage, job, composer.compose(job), packages) for job in listed]
    _refuse_equal(jobs, swept)
    key = fingerprint(sorted(job.fingerprint for job in jobs))[:8]
    folder = chosen_folder(config, "sweep") or f"multirun/{slug('-'.join([stage, *swept]))}-{key}"
    # Hydra's sweeper matches a key with that of `hydra.sweeper.params`, which it replaces, by its spelling
    given = [
        *composer.opened(overrides, keep=set(config.hydra.sweeper.get("params") or {})),
        f"hydra.sweep.dir={quoted(folder)}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, constant))}]",
    ]
    launcher = str(config.hydra.launcher._target_)
    name = sweep_name(stage, [str(o.input_line) for o in parsed], swept)
    return Plan(True, bool(config.get("resume")), Path(folder), jobs, given, launcher, name, tuple(swept))


def chosen_folder(config: DictConfig, kind: str) -> str | None:
    """Return `hydra.run.dir` or `hydra.sweep.dir` where the user set it, else None."""
    node = config.hydra[kind]
    if OmegaConf.is_missing(node, "dir"):
        return None
    previous = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        return check_place(Path(str(node.dir)).expanduser(), f"hydra.{kind}.dir={node.dir}")
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.{kind}.dir: {one_line(error)}") from error
    finally:
        HydraConfig.instance().cfg = previous


def _refuse_equal(jobs: list[Job], swept: list[str]) -> None:
    first: dict[str, int] = {}
    for number, job in enumerate(jobs):
        other = first.setdefault(job.fingerprint, number)
        if other != number:
            raise UserError(
                f"sweep over {', '.join(swept)}: jobs {other} and {number} ({' '.join(job.overrides)}) "
                f"would be the same run: '{job.name}' does not read what differs; leave one out"
            )


def check_place(folder: Path, named: str) -> str:
    """Return the folder where it is one, or can be made; `named` is the option that chose it. Nothing is left behind.

    Raises:
        UserError: a file stands there or on the way, it may not be written to, or the system takes no such name.
    """
    new: list[Path] = []
    try:
        new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "it may not be written to"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    finally:
        for place in new:
            with contextlib.suppress(OSError, ValueError):
                place.rmdir()
    if reason is not None:
        raise UserError(f"{named[:200]}: no folder for results there ({reason}); choose another")
    return str(folder)
