"""Starting the processes of a run with Lightning Fabric, or joining those that torchrun or srun started."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tdaexp.runtime import ranks, stop, surroundings
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.heartbeat import watch_each_other
from tdaexp.runtime.limits import refuse_beyond
from tdaexp.runtime.quiet import quiet
from tdaexp.runtime.silence import elsewhere, never_silent
from tdaexp.runtime.surroundings import from_outside, number

log = logging.getLogger(__name__)
CPU_PROCESSES = 2
PROCESS_BYTES = 0.25e9  # of a process that has imported what it needs and holds nothing yet


@dataclass(frozen=True)
class Team:
    """How many processes: `devices` on each of `nodes` machines, 0 = every GPU, or two on a CPU.

    `accelerator` cpu or cuda.
    """

    accelerator: str
    devices: int = 0
    nodes: int = 1


def run_together(team: Team, identity: dict[str, Any], work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work(*arguments)` in every process, as `ranks.current()`; returns what process 0 returns.

    `identity` is plain data that must be the same everywhere. Everything must be picklable. Errors: UserError for
    devices that are not there, and processes that differ; any UserError of `work`; `Stopped`; `Lost` when a process
    ended before its time or failed.
    """
    surroundings.check()
    outside = from_outside()
    fabric = _fabric(team, outside)
    if outside:
        fabric.launch()
        return _member(fabric, identity, work, arguments)
    stop.check()
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    log.info("%d processes", fabric.world_size)
    try:
        with quiet("torch.multiprocessing.spawn"), elsewhere():
            return fabric.launch(_started, errors, pickle.dumps((identity, work, arguments)))
    except Exception as error:
        from torch.multiprocessing.spawn import ProcessException

        if not isinstance(error, ProcessException):
            raise
        stop.check()
        raise _told(errors, error, fabric.world_size) from None


def _fabric(team: Team, outside: str | None) -> Any:
    import torch

    from tdaexp.runtime.fabric import open_fabric

    devices, nodes = _size(team, outside)
    present = torch.cuda.device_count() if team.accelerator == "cuda" else devices
    if devices > present:
        raise UserError(f"trainer.devices={devices}: this machine has {present} CUDA devices")
    refuse_beyond(devices * PROCESS_BYTES, f"trainer.devices={devices}", "start fewer processes")
    try:
        return open_fabric(team.accelerator, devices, nodes, outside)
    except (RuntimeError, ValueError, KeyError) as error:  # what Lightning says of the variables of srun
        raise UserError(f"trainer.devices={devices} under {outside}: {' '.join(str(error).split())}") from error


def _size(team: Team, outside: str | None) -> tuple[int, int]:
    """Processes per machine, and machines."""
    import torch

    if outside is None:
        if team.nodes != 1:
            raise UserError(
                f"trainer.nodes={team.nodes}: start the processes on the machines with torchrun or srun; "
                "docs/distributed.md shows how"
            )
        every = torch.cuda.device_count() if team.accelerator == "cuda" else CPU_PROCESSES
        return team.devices or every, 1
    keys = ("LOCAL_WORLD_SIZE", "WORLD_SIZE") if outside == "torchrun" else ("SLURM_NTASKS", "SLURM_NTASKS")
    local, world = (number(key, 1, 1) for key in keys)
    if outside == "srun":
        local = max(1, world // number("SLURM_NNODES", 1, 1))
    if team.devices and (team.devices, team.nodes) != (local, world // local):
        raise UserError(
            f"trainer.devices={team.devices} trainer.nodes={team.nodes}: but {outside} started {world} processes, "
            f"{local} on this machine; leave trainer.devices out"
        )
    return local, world // local


def _member(fabric: Any, identity: dict[str, Any], work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Be one process of the run."""
    import torch.distributed as dist

    with ranks.acting_as(_ranks(fabric)), watch_each_other():
        check_same(identity)
        result = work(*arguments)
    if dist.is_initialized():  # not where the work failed: to take leave of a process that is gone may take for ever
        dist.destroy_process_group()
    return result


def _ranks(fabric: Any) -> ranks.Ranks:
    nodes = fabric.strategy.num_nodes
    return ranks.Ranks(fabric.global_rank, fabric.world_size, fabric.device, nodes)


def check_same(identity: dict[str, Any]) -> None:
    """Refuse processes whose plain, nested `identity` differ. Errors (UserError): the first key that does."""
    everyone = [_flat(one) for one in ranks.gathered(identity)]
    for place, other in enumerate(everyone):
        for key in {**everyone[0], **other}:
            ours, theirs = everyone[0].get(key), other.get(key)
            if ours != theirs:
                raise UserError(
                    f"{key}: is {ours!r} in process 0 and {theirs!r} in process {place}; start all processes of a "
                    "run with the same command, files and packages"
                )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + str(key): value}
    return found


def _started(fabric: Any, errors: Any, parcel: bytes) -> Any:
    """The body of a process that this program started: what goes wrong is told to the one that started it.

    `parcel` holds the arguments pickled, because Fabric looks into what it is given and refuses frozen dataclasses.
    """
    with stop.heard(), never_silent():
        try:
            return _member(fabric, *pickle.loads(parcel))
        except KeyboardInterrupt as error:
            sys.exit(stop.exit_code(error))
        except BaseException as error:
            known = isinstance(error, (UserError, stop.Lost))
            if not known:
                log.error("process %d:", fabric.global_rank, exc_info=error)
            text = str(error) if known else " ".join(f"{type(error).__name__}: {error}".split())
            errors.put((time.time(), fabric.global_rank, type(error) if known else RuntimeError, text))
            sys.exit(1)


def _told(errors: Any, ended: Any, world: int) -> BaseException:
    """What to raise in the process that started the others, once one of them ended before its time."""
    found = []
    while not errors.empty():
        found.append(errors.get())
    found.sort(key=lambda one: (one[2] is stop.Lost, one[0]))  # that another was lost is a consequence
    code = getattr(ended, "exit_code", None)
    if found and found[0][2] is not stop.Lost:
        _, rank, kind, text = found[0]
        return UserError(text) if kind is UserError else stop.Lost(f"process {rank} of {world}: {text}")
    if (stopped := stop.Stopped.of(code)) is not None:
        return stopped
    last = str(ended).strip().splitlines()[-1:]  # of a traceback, where it failed outside of `_started`
    mistake = f"{UserError.__module__}.{UserError.__qualname__}: "
    if last and last[0].startswith(mistake):
        return UserError(last[0].removeprefix(mistake))
    how = getattr(ended, "signal_name", None) or (f"exit code {code}" if code is not None else "".join(last))
    return stop.Lost(
        f"process {ended.error_index} of {world} ended before its time ({how}) and the others were stopped; what is "
        f"finished is kept, {stop.RESUME}"
    )
