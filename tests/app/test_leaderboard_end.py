"""Processes of a leaderboard end with it, whatever they are at."""

import multiprocessing
import signal
import time

from tdaexp.app.leaderboard.board import _end


def deaf(ready) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)


def test_a_process_that_does_not_stop_by_itself_is_ended():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=deaf, args=(ready,))
    process.start()
    assert ready.wait(60)
    _end([process], patience=0.1)
    assert process.exitcode == -signal.SIGKILL
