"""The one place that decides that a run stops: because a signal asks for it, or another process was lost.

A signal is a request. It ends the work where it finds it (`at_once`): all that is on disk is complete at any moment.
Work that it would be a pity to lose is let come to its end first (`finishing`): a block, a step of a training. Outside
of both, between the jobs of a sweep for instance, the request waits for the next `check`.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tdaexp.runtime.watcher import every

log = logging.getLogger(__name__)
RESUME = "the same command goes on where it stopped (a sweep with resume=true)"
INTERRUPTED = "interrupted"
SIGNALS = {
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGINT: INTERRUPTED,
    signal.SIGHUP: "stopped by SIGHUP",
}
"""Signals that ask a run to end, and what is said then; a signal that is ignored already (nohup) stays ignored."""
AGAIN_S = 1.0
"""Ctrl-C so long after the first one is a second one; sooner it is the same, handed on by a wrapper."""
PATIENCE_S = 2.0
LOOK_S = 0.3


class Stopped(KeyboardInterrupt):
    """The run was asked to end and did so: what is finished is kept. Like Ctrl-C it ends a whole sweep."""

    def __init__(self, text: str = SIGNALS[signal.SIGTERM]) -> None:
        super().__init__(text)

    @classmethod
    def of(cls, code: int | None) -> Stopped | None:
        """What a process was stopped by that ended with this exit code; None where it was not."""
        return next((cls(text) for number, text in SIGNALS.items() if code == 128 + number), None)


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a run that ended so, as a shell counts it: 128 + the signal's number."""
    text = str(error) or INTERRUPTED
    return 128 + next((number for number, told in SIGNALS.items() if told == text), signal.SIGTERM)


class Lost(Exception):
    """Another process of the run ended or fell silent; what is finished is kept. Its message is one line."""


_reason: BaseException | None = None
_since = 0.0
_at_once = False
_unfinished = 0
_sign: Path | None = None
_leads = False


def request(reason: BaseException) -> None:
    """Ask the run to end with `reason` at the next `check`; the first reason counts."""
    global _reason, _since
    if _reason is None:
        _reason, _since = reason, time.monotonic()


def requested() -> BaseException | None:
    """Why the run is to end; None as long as it is not."""
    return _reason


def check() -> None:
    """Raise the reason why the run is to end, if there is one. Call it where nothing would be lost."""
    if _reason is not None:
        raise _reason


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """A signal ends this block where it finds it, but for what is `finishing` inside."""
    global _at_once
    before, _at_once = _at_once, True
    try:
        check()
        yield
    finally:
        _at_once = before


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """A signal lets this block come to its end, and ends the run there."""
    global _unfinished
    _unfinished += 1
    try:
        yield
    finally:
        _unfinished -= 1
    if _unfinished == 0:
        check()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Take the signals of SIGNALS as requests to end, here and in the processes that this one started."""
    global _reason
    before = hear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _reason = None


def hear() -> dict[signal.Signals, signal.Handlers]:
    """As `heard`, from here on; returns the handlers that were there before, none where it was done already.

    Only the main thread may do so, which a launcher's need not be.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    now = {number: signal.getsignal(number) for number in SIGNALS}
    wanted = {number: old for number, old in now.items() if old not in (signal.SIG_IGN, _hear, None)}
    for number in wanted:
        signal.signal(number, _hear)
    return wanted  # type: ignore[return-value]


def _hear(number: int, *_: object) -> None:
    """A signal has come."""
    first, since = _reason is None, _since
    request(Stopped(SIGNALS[signal.Signals(number)]))
    assert _reason is not None
    for child in () if _leads else multiprocessing.active_children():
        child.terminate()
    if _sign is not None and first:
        with contextlib.suppress(OSError):
            _sign.write_text(str(_reason), encoding="utf-8")
    again = number == signal.SIGINT and not first and time.monotonic() - since > AGAIN_S
    if again or (first and _at_once and not _unfinished):
        raise _reason
    if first and number == signal.SIGINT:
        _tell_later()


def _tell_later() -> None:
    """Whoever pressed Ctrl-C learns what is waited for, where it takes long."""

    def tell() -> None:
        if _reason is not None:
            log.warning("interrupted: ends after the block at hand; Ctrl-C again ends at once")

    timer = threading.Timer(PATIENCE_S, tell)
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def all_together(sign: Path | None, leads: bool = False) -> Iterator[None]:
    """Of processes that run the jobs of one sweep beside each other, all end where one is asked to.

    Each of them is in such a block with the same file: who is asked writes it, the others look for it. None: alone.
    The one that `leads` has started the others, which may not hear a signal yet: they learn from the file alone.
    """
    global _sign, _leads
    if sign is None:
        yield
        return
    before, _sign, _leads = (_sign, _leads), sign, leads

    def look() -> None:
        if _reason is None and (text := _read(sign)):
            number = next((one for one, told in SIGNALS.items() if told == text), signal.SIGTERM)
            os.kill(os.getpid(), number)

    if text := _read(sign):
        request(Stopped(text))
    try:
        with every(LOOK_S, look):
            yield
    finally:
        _sign, _leads = before


def _read(sign: Path) -> str:
    try:
        return sign.read_text(encoding="utf-8")
    except OSError:
        return ""
