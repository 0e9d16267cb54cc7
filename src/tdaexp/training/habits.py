"""Habits of Lightning's trainer that a run of this program does without."""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator

import torch

from tdaexp.runtime.quiet import quiet


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hold back Lightning's tips and its warnings about loaders and workers that this loop does not have."""
    with quiet("lightning", "lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        yield


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Lightning makes `sys.exit(1)` of an interrupt, and ignores SIGINT from then on; here it stays what it was."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def global_torch_state() -> Iterator[None]:
    """Restore what Lightning's deterministic mode and precision plugins change for the whole process."""
    deterministic, dtype = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(dtype)
