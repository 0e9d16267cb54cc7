"""Ending a run between two blocks of work, because the system asks for it or another process was lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator

RESUME = "the same command goes on where it stopped (a sweep with resume=true)"


class Stopped(KeyboardInterrupt):
    """The run was asked to end and did so at the end of a block: what is finished is kept.

    Like Ctrl-C it ends a whole sweep.
    """


class Lost(Exception):
    """Another process of the run ended or fell silent; what is finished is kept. Its message is one line."""


_reason: BaseException | None = None


def request(reason: BaseException) -> None:
    """Ask the run to end with `reason` at the next `check`; the first reason counts."""
    global _reason
    _reason = _reason or reason


def requested() -> BaseException | None:
    """Why the run is to end; None as long as it is not."""
    return _reason


def check() -> None:
    """Raise the reason why the run is to end, if there is one. Call it where nothing would be lost."""
    if _reason is not None:
        raise _reason


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Take SIGTERM as a request to end after the block at hand, here and in the processes that this one started."""
    global _reason
    if threading.current_thread() is not threading.main_thread():
        yield  # a launcher's thread: only the main one may handle signals
        return

    def handle(*_: object) -> None:
        request(Stopped("stopped by SIGTERM"))
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _reason = None
