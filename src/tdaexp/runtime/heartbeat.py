"""Signs of life: a file in the run folder for people and schedulers, and word between the processes of a run."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from tdaexp.runtime import ranks, stop
from tdaexp.runtime.files import write_json
from tdaexp.runtime.progress import place
from tdaexp.runtime.watcher import every

FILE = "heartbeat.json"
BEAT_S = 5.0
SILENCE_S = 35.0
GRACE_S = 15.0
"""What a lost process's companions have left to end a block."""


@contextlib.contextmanager
def heartbeat(folder: Path) -> Iterator[None]:
    """Keep `heartbeat.json` in the folder up to date: time (seconds since 1970), process, what is done of what."""

    def write() -> None:
        with contextlib.suppress(OSError):  # a full disk is the run's to report
            now = {"time": time.time(), "pid": os.getpid(), "doing": place.description}
            write_json(folder / FILE, {**now, "done": place.done, "total": place.total})

    write()
    with every(BEAT_S, write):
        yield
    write()


@contextlib.contextmanager
def watch_each_other() -> Iterator[None]:
    """Notice within a minute that another process died or hangs: this one ends at its block's end, at the latest then.

    A silent process is one that has not said a word for SILENCE_S.
    """
    me = ranks.current()
    if me.world == 1:
        yield
        return
    store = _meeting_place(me)
    heard: dict[int, tuple[Any, float]] = {}
    beats = [0]

    def beat() -> None:
        beats[0] += 1
        try:
            store.set(f"pulse-{me.rank}", str(beats[0]))
            found = {rank: store.get(f"pulse-{rank}") for rank in range(me.world) if rank != me.rank}
        except RuntimeError:
            return _lost(f"process 0 of {me.world} cannot be reached")
        for rank, value in found.items():
            if value != heard.get(rank, (None, 0.0))[0] or value == b"bye":
                heard[rank] = (value, time.monotonic())
            elif time.monotonic() - heard[rank][1] > SILENCE_S:
                return _lost(f"process {rank} of {me.world} has been silent for {SILENCE_S:.0f} s")

    store.set(f"pulse-{me.rank}", "0")
    ranks.barrier()
    with every(BEAT_S, beat):
        yield
    with contextlib.suppress(RuntimeError):
        store.set(f"pulse-{me.rank}", "bye")
        ranks.barrier()  # process 0 keeps the meeting place open until all have said so


def _meeting_place(me: ranks.Ranks) -> Any:
    """A store that all processes can reach; process 0 serves it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    how: Any = {"wait_for_workers": False, "timeout": timedelta(seconds=SILENCE_S)}  # process 0 may hang itself
    store = TCPStore(host, 0, me.world, is_master=True, **how) if me.first else None
    port = ranks.from_first(store.port if store else 0)
    return store or TCPStore(host, port, me.world, is_master=False, **how)


def _lost(what: str) -> None:
    """Ask the run to end; end it where it does not in time."""
    if stop.requested() is None:
        stop.request(stop.Lost(f"{what}; what is finished is kept, {stop.RESUME}"))
        timer = threading.Timer(GRACE_S, _give_up, [what])
        timer.daemon = True
        timer.start()


def _give_up(what: str) -> None:
    print(f"error: {what}; what is finished is kept, {stop.RESUME}", file=sys.stderr, flush=True)
    os._exit(1)
