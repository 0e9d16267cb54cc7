"""No silence: where nothing was shown for a while, a line says what is being done, whatever that is."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from tdaexp.runtime import ranks
from tdaexp.runtime.progress import SECONDS_BETWEEN_LINES, SECONDS_TO_FIRST, bars, place
from tdaexp.runtime.watcher import every

log = logging.getLogger(__name__)
LOOK_S = 1.0
_elsewhere: list[bool] = []


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """For the length of a block other processes work, and speak for themselves."""
    _elsewhere.append(True)
    try:
        yield
    finally:
        _elsewhere.pop()


class _Heard(logging.Handler):
    """Remembers when something was last logged, by anybody else."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time."""
        if record.name != log.name:
            self.last = time.monotonic()


@contextlib.contextmanager
def never_silent() -> Iterator[None]:
    """For the length of a block: where nothing was said for SECONDS_TO_FIRST, a line says what is being done.

    The next one follows after twice the time, up to SECONDS_BETWEEN_LINES. A bar on the terminal speaks for itself.
    """
    heard = _Heard()
    pause, last, since = SECONDS_TO_FIRST, heard.last, heard.last

    def look() -> None:
        nonlocal pause, last, since
        root = logging.getLogger()
        # Never the first one, which would keep others from setting logging up, nor only once: they drop it.
        if root.handlers and heard not in root.handlers:
            root.addHandler(heard)
        if bars or _elsewhere:
            heard.last = time.monotonic()
        if heard.last != since:
            last = since = heard.last
            pause = SECONDS_TO_FIRST
        elif time.monotonic() - last >= pause:
            last, pause = time.monotonic(), min(2 * pause, SECONDS_BETWEEN_LINES)
            if ranks.current().first:
                _say(f"{_doing()}: still at it after {last - since:.0f} s")

    try:
        with every(LOOK_S, look):
            yield
    finally:
        logging.getLogger().removeHandler(heard)


def _doing() -> str:
    return place.description + (f", {place.done} of {place.total} done" if place.total else "")


def _say(text: str) -> None:
    if any(not isinstance(one, _Heard) for one in logging.getLogger().handlers):
        log.info("%s", text)
    else:  # before logging is set up
        print(text, file=sys.stderr, flush=True)
