"""Processes of one run; the others are played by threads-free stand-ins, real ones are in test_processes."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tdaexp.runtime import progress, ranks, stop
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.launch import check_same


@pytest.fixture
def beside(monkeypatch):
    """Lets this process be any of several whose answers are the same as its own."""
    monkeypatch.setattr(ranks, "barrier", lambda: None)
    monkeypatch.setattr(ranks, "gathered", lambda value: [value] * ranks.current().world)
    return lambda rank, world: ranks.acting_as(ranks.Ranks(rank, world))


def open_store(folder) -> BlockStore:
    # rows of a file are cut by blocks: neighbours share files
    return BlockStore(folder / "store", {"x": ((7,), "float64")}, [slice(0, 2), slice(2, 5), slice(5, 7)])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_block_is_computed_once_whoever_does_it(tmp_path, beside, monkeypatch, caplog, world):
    monkeypatch.setattr(ranks, "from_first", lambda value: [0, 1, 2])
    found: list[int] = []
    caplog.set_level("INFO", logger="tdaexp")
    for rank in range(world):
        with beside(rank, world):
            store = open_store(tmp_path)
            with store.pending() as mine:
                for number in store.each(mine, "blocks"):
                    span = store.blocks[number]
                    store.write(number, {"x": np.arange(7.0)[span]})
                    found.append(number)
    assert sorted(found) == [0, 1, 2]
    assert open_store(tmp_path).read()["x"].tolist() == list(range(7))
    assert any("3 blocks for 5 processes" in message for message in caplog.messages) == (world == 5)


def test_processes_with_different_settings_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "gathered", lambda value: [value, {"trainer": {"cache_gb": 2.0, "devices": 2}}])
    with pytest.raises(UserError, match=r"trainer.cache_gb: is 1.0 in process 0 and 2.0 in process 1"):
        check_same({"trainer": {"cache_gb": 1.0, "devices": 2}})
    check_same({"trainer": {"cache_gb": 2.0, "devices": 2}})


def test_a_request_to_stop_is_heard_at_the_end_of_a_block(tmp_path):
    store = open_store(tmp_path)
    with stop.heard(), pytest.raises(stop.Stopped), store.pending() as missing:
        for number in store.each(missing, "blocks"):
            store.write(number, {"x": np.zeros(7)[store.blocks[number]]})
            if number == 1:
                signal.raise_signal(signal.SIGTERM)
    assert store.missing() == [2]
    assert stop.requested() is None  # the next job of a sweep begins anew


def test_only_the_first_process_shows_progress(beside, caplog):
    caplog.set_level("INFO", logger="tdaexp")
    for rank, lines in ((1, 0), (0, 1)):
        with beside(rank, 2):
            assert list(progress.track(range(2), "blocks", total=3, each=2)) == [0, 1]
        assert len(caplog.messages) == lines
    assert caplog.messages[0].startswith("blocks: 3 of 3")
