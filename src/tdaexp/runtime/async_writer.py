"""A thread that writes while the main one computes, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Behind:
    """A context with one thread beside it. What fails there is raised here: at the next `wait`, or at the end.

    The context ends when the work is done, also where it ends with an error.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Do some work beside, after what is being done."""
        self.wait()
        self._work = self._pool.submit(work)

    def wait(self) -> None:
        """Come back when nothing is being done; raises what went wrong."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()
