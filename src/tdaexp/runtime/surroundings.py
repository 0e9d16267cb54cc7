"""What the environment's variables say about the processes of a run: read here, and refused here where it cannot be."""

from __future__ import annotations

import os
import socket
import threading

from tdaexp.runtime.errors import UserError

PORTS = (1, 65535)
RESOLVING_S = 10.0
TORCHRUN = ("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
SRUN = ("SLURM_PROCID", "SLURM_NTASKS"), ("SLURM_LOCALID", "SLURM_NTASKS"), ("SLURM_NODEID", "SLURM_NNODES")
"""Variables that number something from 0, each with the one that says how many there are."""


def number(name: str, default: int, least: int = 0, most: int | None = None) -> int:
    """A variable that holds an integer, `default` where it is not set. Errors (UserError): it holds anything else."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    wanted = f"an integer from {least} to {most}" if most is not None else f"an integer of at least {least}"
    if not text.isascii() or not text.isdecimal() or not least <= int(text) <= (int(text) if most is None else most):
        raise UserError(f"environment variable {name}={text}: must be {wanted}; set it right or unset it")
    return int(text)


def from_outside() -> str | None:
    """What started this process as one of several: `torchrun` or `srun`; None where this program is to start them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    if "SLURM_STEP_ID" in os.environ and number("SLURM_NTASKS", 1, 1) > 1:
        return "srun"
    return None


def outer_rank() -> int:
    """Number of this process among those that were started from outside."""
    name = {"torchrun": "RANK", "srun": "SLURM_PROCID"}.get(from_outside() or "")
    return number(name, 0) if name else 0


def check() -> None:
    """Refuse (UserError) variables by which processes would never find each other."""
    number("MASTER_PORT", 1, *PORTS)
    outside = from_outside()
    if outside is None:
        return  # they are started here, on this machine
    for place, many in TORCHRUN if outside == "torchrun" else SRUN:
        count = number(many, 1, 1)
        number(place, 0, 0, count - 1)
    number("SLURM_JOB_ID", 0)
    if outside == "torchrun":
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise UserError(f"environment variable {name} is not set, but TORCHELASTIC_RUN_ID is; use torchrun")
    if address := os.environ.get("MASTER_ADDR"):
        _check_address(address)


def _check_address(address: str) -> None:
    """Refuse a host that has no address; a name server that does not answer counts as none."""
    found: list[object] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(address, None))
        except (OSError, UnicodeError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVING_S)
    if not found:
        raise UserError(f"environment variable MASTER_ADDR={address}: no such host; name the machine of process 0")
