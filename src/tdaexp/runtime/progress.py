"""Progress for people: a bar on a terminal and in a notebook, plain lines elsewhere. Process 0 alone shows it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tdaexp.runtime import ranks, stop

T = TypeVar("T")
log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 60.0
SECONDS_TO_FIRST = 10.0


@dataclass
class Place:
    """How far this process is: `done` of `total` of what `description` names."""

    description: str = "starting"
    done: int = 0
    total: int = 0


place = Place()
bars: list[Any] = []
"""Bars that stand on the terminal."""


def doing(description: str) -> None:
    """Tell what this process is at from here on, where it is nothing that can be counted."""
    place.description, place.done, place.total = description, 0, 0


def track(
    items: Iterable[T], description: str, total: int, done: int = 0, *, each: int = 1, stoppable: bool = False
) -> Iterator[T]:
    """Yield `items` while showing how far they are; `done` of `total` count as finished before the first.

    On a terminal and in a notebook it draws a bar with rate and time left; elsewhere it logs a line after ten
    seconds, then one a minute and one at the end. An
    item counts as `each`, where other processes do as many beside. A run that
    is asked to end finishes a `stoppable` item first.
    """
    watched = _watched(items, description, total, done, each, stoppable)
    if not ranks.current().first:
        yield from watched
    elif sys.stderr.isatty():
        yield from _bar(watched, description, total, done, each)
    elif in_notebook():
        yield from _below_cell(watched, description, total, done, each)
    else:
        yield from _lines(watched, description, total, done, each)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _watched(items: Iterable[T], description: str, total: int, done: int, each: int, stoppable: bool) -> Iterator[T]:
    """Keep `place` up to date, and end the run here if it is to end."""
    place.description, place.done, place.total = description, done, total
    for item in items:
        with stop.finishing() if stoppable else contextlib.nullcontext():
            yield item
            place.description, place.total = description, total
            place.done = done = min(total, done + each)
        if stoppable:
            stop.check()


def _bar(items: Iterable[T], description: str, total: int, done: int, each: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=done, rate="")
        start, count = time.monotonic(), done
        bars.append(task)
        try:
            for item in items:
                yield item
                count = min(total, count + each)
                progress.update(task, completed=count, rate=rate(count - done, time.monotonic() - start))
        finally:
            bars.remove(task)


def _below_cell(items: Iterable[T], description: str, total: int, done: int, each: int) -> Iterator[T]:
    """A bar of text, which needs no widgets; it goes when it is full."""
    from tqdm.std import tqdm

    with tqdm(total=total, initial=done, desc=description, file=sys.stderr, leave=False, mininterval=0.5) as bar:
        for item in items:
            yield item
            bar.update(min(each, total - bar.n))


def _lines(items: Iterable[T], description: str, total: int, done: int, each: int) -> Iterator[T]:
    start = time.monotonic()
    count, due = done, start + SECONDS_TO_FIRST
    for item in items:
        yield item
        count = min(total, count + each)
        now = time.monotonic()
        if now >= due:
            left = (now - start) / max(1, count - done) * (total - count)
            speed = rate(count - done, now - start)
            log.info("%s: %d of %d, %s, about %.0f s left", description, count, total, speed, left)
            due = now + SECONDS_BETWEEN_LINES
    log.info("%s: %d of %d in %.1f s", description, count, total, time.monotonic() - start)


def rate(count: int, seconds: float) -> str:
    """So many in so many seconds, for people."""
    speed = count / max(seconds, 1e-9)
    return f"{speed:.3g} a second" if speed >= 1 else f"{60 * speed:.3g} a minute"
