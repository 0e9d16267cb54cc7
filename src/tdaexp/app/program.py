"""From arguments to Hydra: parse with its own parser, check all jobs, name the folders, hand over."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tdaexp.app import called, sweep
from tdaexp.app.compose import Composer, open_composer
from tdaexp.app.job import Job
from tdaexp.app.origin import one_line
from tdaexp.app.plan import Plan, plan
from tdaexp.app.task import FAILED, Task
from tdaexp.app.typed import as_option
from tdaexp.runtime import stop, surroundings
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.silence import elsewhere
from tdaexp.runtime.surroundings import from_outside, outer_rank


def run(stage: str, conf: Path, program: str, arguments: list[str], packages: tuple[str, ...], module: str) -> int:
    """Check and run one stage; returns the exit code. Arguments as in `tdaexp.app.main`."""
    options = _parse(arguments)
    options.overrides = [as_option(_nested(text), options.multirun) for text in options.overrides]
    conf, name = conf.parent / (options.config_path or conf), options.config_name or stage
    extra = Path(options.config_dir) if options.config_dir else None
    places = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in _PLACES if getattr(options, key)]
    task = Task(stage, (*called(program), *places), packages, module)
    if options.experimental_rerun:
        raise UserError("option --experimental-rerun: reads a pickle, which can run any code; type the command again")
    if options.info:
        with open_composer(name, conf, extra) as composer:
            spelt = composer.spelt(options.overrides)
            composer.compose([str(one.input_line) for one in composer.parse(spelt)], options.multirun)
        arguments = [*_flags(options), f"--info={options.info}", *spelt]
    if options.hydra_help or options.shell_completion or options.info:
        _hand_over(task, conf, name, [program, *arguments])
        return 0
    if options.resolve and not options.cfg:
        raise UserError("option --resolve: goes with --cfg job")
    if options.cfg and options.multirun:
        raise UserError("option --cfg: shows one configuration; leave out -m")
    with open_composer(name, conf, extra) as composer:
        _check_package(composer, options)
        planned = plan(composer, stage, options.overrides, options.multirun, packages)
        wanted = [job for job in planned.jobs if getattr(job.config, "plan", False)]
        if wanted and not options.cfg:
            return _print_plans(wanted, planned, composer)
    if any(job.config.trainer.strategy != "single" for job in planned.jobs):
        surroundings.check()
    if options.cfg and planned.multirun:
        raise UserError("option --cfg: shows one configuration, and hydra.mode=MULTIRUN makes several")
    flags = [*places, *_flags(options)]
    argv = [program, *flags, *planned.overrides]
    if options.cfg:
        _hand_over(task, conf, name, argv)
        return 0
    if planned.multirun:
        if from_outside():
            raise UserError(
                f"option -m: {from_outside()} started several processes; give each job a {from_outside()} of its own, "
                "or leave it out (trainer=ddp starts its own processes)"
            )
        return _sweep(task, conf, name, argv, planned)
    if outer_rank():
        return task.follow(planned.jobs[0], planned.folder)
    _hand_over(task, conf, name, argv)
    return task.codes[-1]


def _check_package(composer: Composer, options: argparse.Namespace) -> None:
    """Refuse to show a part of the configuration that it does not have."""
    if options.cfg and options.package:
        parsed = composer.parse(options.overrides)
        config = composer.compose([str(one.input_line) for one in parsed if not one.is_sweep_override()])
        try:
            OmegaConf.select(config, options.package, throw_on_resolution_failure=True, throw_on_missing=False)
            parent, _, key = options.package.rpartition(".")
            known = OmegaConf.select(config, parent) if parent else config
        except OmegaConfBaseException as error:
            raise UserError(f"option --package={options.package}: {one_line(error)}") from error
        if not isinstance(known, DictConfig) or key not in known:
            choices = [str(one) for one in known] if isinstance(known, DictConfig) else []
            raise unknown("key", options.package, choices, "option --package")


def _print_plans(jobs: list[Job], planned: Plan, composer: Composer) -> int:
    """Print what each job would cost, and the script of a job array on a cluster; nothing runs, no folder is made."""
    from tdaexp.app.slurm import job_script
    from tdaexp.planning.plan import plan_of

    for job in jobs:
        if planned.multirun:
            print(f"job {job.name}: {' '.join(job.overrides)}")
        print(plan_of(job.config).table(), end="\n\n")
    if planned.multirun:
        script = job_script(composer.launcher(planned.overrides), len(planned.jobs))
        print(script or "", end="")
    return 0


_NESTED = {"method.on": "method"}  # keys that hold a whole choice of a group, and that group


def _nested(text: str) -> str:
    """Spell `method.on=NAME` in Hydra's way, `method@method.on=NAME`."""
    key, equals, value = text.partition("=")
    group = _NESTED.get(key)
    return f"{group}@{key}{equals}{value}" if group and equals else text


_PLACES = ("config_path", "config_name", "config_dir")


def _sweep(task: Task, conf: Path, name: str, argv: list[str], planned: Plan) -> int:
    """Run a sweep; its table is brought to an end even when the launcher is stopped."""
    folder = planned.folder
    jobs = [sweep.Planned(task.stage, job.fingerprint, job.subject, job.overrides) for job in planned.jobs]
    sweep.open_sweep(folder, {job.fingerprint for job in jobs} if planned.resume else set(), jobs)
    try:
        with _ending(planned):
            _hand_over(replace(task, group=planned.name, swept=planned.swept), conf, name, argv)
    except Exception:
        stop.check()  # a worker that a signal found before it could listen
        raise
    finally:
        failed = sweep.close_sweep(folder, len(planned.jobs))
    if failed:
        stop.check()
    table = folder / sweep.TABLE
    print(f"{len(planned.jobs) - failed} of {len(planned.jobs)} jobs done: {table}", file=sys.stderr)
    return FAILED if failed else 0


def _ending(planned: Plan) -> contextlib.AbstractContextManager[Any]:
    """How a signal ends a sweep: its own jobs by themselves, those beside by a sign, a cluster's are only left."""
    if planned.launcher.endswith(BasicLauncher.__name__):
        return contextlib.nullcontext()
    ending, sign = contextlib.ExitStack(), sweep.sign(planned.folder, planned.launcher)
    ending.enter_context(elsewhere())
    ending.enter_context(stop.at_once() if sign is None else stop.all_together(sign, leads=True))
    return ending


def _hand_over(task: Task, conf: Path, name: str, argv: list[str]) -> None:
    before = sys.argv
    sys.argv = argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where it is known whether the run was asked to end
    try:
        hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=name)(task)()
    finally:
        sys.argv = before


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse with options and overrides in any order (`a=1 -m b=2`), which Hydra itself refuses."""
    parser = get_args_parser()

    def fail(message: str) -> NoReturn:
        raise UserError(f"option: {message}; keys are given as KEY=VALUE, without dashes; see --help")

    parser.error = fail  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


def _flags(options: argparse.Namespace) -> list[str]:
    """Spell the remaining flags in front of the overrides, where Hydra expects them."""
    flags = [f"--{key}" for key in ("multirun", "run", "resolve") if getattr(options, key)]
    return flags + [f"--{key}={getattr(options, key)}" for key in ("cfg", "package") if getattr(options, key)]
