"""Where the numbers live: device, floating-point type and threads, from the words used in a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float64")


def resolve_device(accelerator: str) -> torch.device:
    """Return the device for `auto` (CUDA when there is one), `cpu` or `cuda`; asking for an absent one is an
    error.
    """
    import torch

    if accelerator not in ACCELERATORS:
        raise unknown("accelerator", accelerator, ACCELERATORS, "trainer.accelerator")
    present = torch.cuda.is_available()
    if accelerator == "cuda" and not present:
        raise UserError(
            "trainer.accelerator=cuda: this machine offers no CUDA device to PyTorch; "
            "set trainer.accelerator=cpu (or auto), or install a CUDA build of torch"
        )
    return torch.device("cuda" if present and accelerator != "cpu" else "cpu")


def resolve_dtype(precision: str) -> torch.dtype:
    """Return the floating-point type named `float32`, `bfloat16` or `float64`."""
    import torch

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS, "trainer.precision")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[precision]


def set_threads(threads: int) -> None:
    """Let PyTorch use this many CPU threads; 0 leaves its own choice (or OMP_NUM_THREADS) alone."""
    import torch

    if threads < 0:
        raise UserError(f"trainer.threads={threads}: must be 0 (leave as it is) or a number of threads")
    if threads:
        torch.set_num_threads(threads)
