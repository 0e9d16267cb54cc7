"""Where the numbers live: device and floating-point type, from the words used in a config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float64", "auto")


def resolve_device(accelerator: str) -> torch.device:
    """Return the device for one of ACCELERATORS: `auto` is CUDA when there is one; an absent `cuda` is an error.

    Where a run has several processes it is the one that this process was given.
    """
    import torch

    own: torch.device | None = ranks.current().device
    if own is not None:
        return own
    present = torch.cuda.is_available()
    if accelerator == "cuda" and not present:
        raise UserError(
            "trainer.accelerator=cuda: this machine offers no CUDA device to PyTorch; "
            "set trainer.accelerator=cpu (or auto), or install a CUDA build of torch"
        )
    return torch.device({"auto": "cuda" if present else "cpu", "cpu": "cpu", "cuda": "cuda"}[accelerator])


def resolve_dtype(precision: str) -> torch.dtype:
    """Return the floating-point type for one of PRECISIONS; `auto` was settled before, when the model was known."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[precision]


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """The same bits in every run, and whole float32 in convolutions, on CUDA; a CPU has both as it is.

    An operation that has no deterministic form there warns.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
