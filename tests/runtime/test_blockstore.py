import json
import threading
import time

import numpy as np
import pytest

from tdaexp.runtime.block_files import stored_seconds
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError

BLOCKS = [slice(0, 2), slice(2, 4), slice(4, 5)]
ARRAYS = {"dot": ((5, 3), "float32"), "sq": ((5,), "float64")}


def test_a_block_store_goes_on_where_it_stopped(tmp_path):
    values = {"dot": np.arange(15, dtype=np.float32).reshape(5, 3), "sq": np.arange(5.0)}
    first = BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    first.write(1, {name: value[BLOCKS[1]] for name, value in values.items()})
    again = BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    assert again.missing() == [0, 2]
    with pytest.raises(RuntimeError, match="2 blocks are missing"):
        again.read()
    for block in again.missing():
        again.write(block, {name: value[BLOCKS[block]] for name, value in values.items()})
    for name, value in again.read().items():
        np.testing.assert_array_equal(value, values[name])
    assert stored_seconds(tmp_path / "store") > 0
    assert stored_seconds(tmp_path / "nothing") == 0


def test_a_block_store_refuses_another_shape_and_damage(tmp_path):
    BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    with pytest.raises(UserError, match="cache of another run"):
        BlockStore(tmp_path / "store", {**ARRAYS, "dot": ((5, 4), "float32")}, BLOCKS)
    metadata = tmp_path / "store" / "dot" / "zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()))[:50])
    with pytest.raises(UserError, match="damaged cache"):
        BlockStore(tmp_path / "store", ARRAYS, BLOCKS)


@pytest.mark.parametrize("damage", ["lost", "truncated", "other"])
def test_a_damaged_block_is_computed_again(tmp_path, damage, caplog):
    """A lost chunk would be read as NaN, which elsewhere means that a pair was never asked for."""
    values = {"dot": np.arange(15.0).reshape(5, 3), "sq": np.arange(5.0)}
    store = BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    for block, rows in enumerate(BLOCKS):
        store.write(block, {name: value[rows] for name, value in values.items()})
    assert BlockStore(tmp_path / "store", ARRAYS, BLOCKS).missing() == []
    chunk = next(path for path in (tmp_path / "store" / "dot" / "c").rglob("*") if path.is_file())
    others = [path for path in chunk.parents[1].rglob("*") if path.is_file() and path != chunk]
    if damage == "lost":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-3] if damage == "truncated" else others[0].read_bytes())
    again = BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    assert len(again.missing()) >= 1 and "damaged and will be computed again" in caplog.text
    for block in again.missing():
        again.write(block, {name: value[BLOCKS[block]] for name, value in values.items()})
    np.testing.assert_array_equal(again.read()["dot"], values["dot"])


def test_blocks_written_beside_are_complete_when_the_context_ends(tmp_path, monkeypatch):
    """Whether it ends by itself or with an error; and no more than one block waits."""
    values = {"dot": np.arange(15, dtype=np.float32).reshape(5, 3), "sq": np.arange(5.0)}
    store, main, begun = BlockStore(tmp_path / "store", ARRAYS, BLOCKS), threading.get_ident(), threading.Event()
    write = BlockStore._write

    def slowly(self, block, content):
        assert threading.get_ident() != main
        begun.wait(10)
        write(self, block, content)

    monkeypatch.setattr(BlockStore, "_write", slowly)
    with pytest.raises(KeyError, match="stop"), store.pending(beside=True) as missing:
        assert missing == [0, 1, 2]
        store.write(0, {name: value[BLOCKS[0]] for name, value in values.items()})
        assert not store.done[0]  # the caller goes on before the block is there
        begun.set()
        store.write(1, {name: value[BLOCKS[1]] for name, value in values.items()})
        assert store.done[0]
        raise KeyError("stop")
    assert store.missing() == [2]
    assert (store.group["seconds"][:2] > 0).all()
    spent, start = BlockStore.spent, time.monotonic()
    with store.pending(beside=True) as missing:
        assert missing == [2]
        time.sleep(0.05)
        store.write(2, {name: value[BLOCKS[2]] for name, value in values.items()})
        time.sleep(0.05)
    assert 0.1 <= store.group["seconds"][2] <= BlockStore.spent - spent <= time.monotonic() - start
    for name, value in store.read().items():
        np.testing.assert_array_equal(value, values[name])


@pytest.mark.parametrize("at_the_end", [True, False])
def test_what_fails_beside_is_raised(tmp_path, monkeypatch, at_the_end):
    store = BlockStore(tmp_path / "store", ARRAYS, BLOCKS)
    content = {"dot": np.zeros((2, 3)), "sq": np.zeros(2)}

    def fail(self, block, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BlockStore, "_write", fail)
    reached = []
    with pytest.raises(OSError, match="No space left"), store.pending(beside=True):
        store.write(0, content)
        if not at_the_end:
            store.write(1, content)
        reached.append(True)
    assert reached == [True] * at_the_end
    assert store.missing() == [0, 1, 2]
    monkeypatch.undo()
    with store.pending():  # and the store is as usable as before
        store.write(0, content)
    assert store.missing() == [1, 2]
