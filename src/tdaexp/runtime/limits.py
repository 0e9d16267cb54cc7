"""Sizes that cannot work are refused before anything is built, with the number and the limit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

GB = 1e9
GROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device | None = None) -> float:
    """Bytes that are free: of a CUDA device, else of main memory, within the limit of this process's control group."""
    if device is not None and device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        most, used = ((GROUP / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        return min(free, float(most) - float(used)) if most != "max" else free
    except (OSError, ValueError, StopIteration):  # another system, or no such group
        return free


def refuse_beyond(needed: float, what: str, remedy: str, device: torch.device | None = None) -> None:
    """Refuse (UserError) what needs more bytes than are free; `what` begins with the key and its value."""
    free = available_bytes(device)
    if needed > free:
        raise UserError(f"{what} needs about {needed / GB:.3g} GB of memory, {free / GB:.3g} GB are free; {remedy}")
