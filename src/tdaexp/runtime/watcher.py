"""A thread that looks after something while the main one works."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """For the length of a block, call the action at intervals in a thread of its own; first after `seconds`."""
    end = threading.Event()

    def loop() -> None:
        while not end.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
