"""Progress for people: a bar on a terminal, one plain line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 60.0


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items` while showing how far they are; `done` of `total` count as finished before the first.

    On a terminal it draws a bar with rate and time left; elsewhere it logs one line a minute and one at the end.
    """
    if sys.stderr.isatty():
        yield from _bar(items, description, total, done)
    else:
        yield from _lines(items, description, total, done)


def _bar(items: Iterable[T], description: str, total: int, done: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[T], description: str, total: int, done: int) -> Iterator[T]:
    start = last = time.monotonic()
    count = done
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            left = (now - start) / (count - done) * (total - count)
            log.info("%s: %d of %d, about %.0f s left", description, count, total, left)
            last = now
    log.info("%s: %d of %d in %.1f s", description, count, total, time.monotonic() - start)
