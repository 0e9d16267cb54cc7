"""A time limit for code of other people that may never end, such as the loops of a chat template.

The call runs in a thread of its own, and a call that is overdue gets an exception there. That ends any loop in Python;
a single operation in C that never ends (a power of gigantic numbers) it cannot end, and such a call keeps its thread.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Overdue(Exception):
    """The call took longer than it may."""


class _Stop(BaseException):
    """Ends an overdue call; no handler of its own for exceptions catches it."""


class _Worker:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True, name="deadline")
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                call = self.calls.get()
                try:
                    self.answers.put((True, call()))
                except Exception as error:
                    self.answers.put((False, error))
        except _Stop:
            return

    def stop(self) -> None:
        """End the thread at its next step."""
        assert self.thread.ident is not None  # it was started
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident), ctypes.py_object(_Stop))


_idle: list[_Worker] = []


def within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result, or what it raises, if that comes within `seconds`.

    Raises:
        Overdue: it does not.
    """
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    worker.calls.put(call)
    try:
        well, answer = worker.answers.get(timeout=seconds)
    except queue.Empty as error:
        worker.stop()
        raise Overdue(f"{seconds:g} s") from error
    except BaseException:  # Ctrl-C while waiting
        worker.stop()
        raise
    _idle.append(worker)
    if well:
        return answer  # type: ignore[no-any-return]
    raise answer
