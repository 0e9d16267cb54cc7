"""Kind 1: a changed byte in any file of a cached model or store gives the same answer or one line, never another one.

One property for all that the cache holds. Every example changes one byte of one file, reads the answer as a run would,
and puts the byte back.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdaexp import influence
from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.candidates import BM25S
from tdaexp.data.records import Record
from tdaexp.gradients.schedule import Block, kept_plan
from tdaexp.models.completions import CompletionCache
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime import cache
from tdaexp.runtime.block_files import stored_seconds
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.seal import seal
from tdaexp.training.checkpoints import newest_readable, resume_path, save
from tdaexp.training.trained import load_trained
from tdaexp.training.trajectory import Layout, Trajectory

Answer = dict[str, object]


@dataclass
class Kept:
    """What the cache holds of one kind: its folder, and how a run reads its answer."""

    folder: Path
    read: Callable[[Path], Answer]


def block_store(folder: Path) -> Answer:
    """Three blocks of two arrays, of which the last two rows share a file with others."""
    arrays = {"a": ((7, 3), "float32"), "b": ((7,), "float64")}
    values = np.arange(21, dtype=np.float32).reshape(7, 3)
    store = BlockStore(folder / "store", arrays, [slice(0, 3), slice(3, 5), slice(5, 7)])
    with store.pending() as missing:
        for number in missing:
            rows = store.blocks[number]
            store.write(number, {"a": values[rows] / 3, "b": np.sqrt(values[rows, 0])})
    stored_seconds(folder / "store")
    return store.read()


def completions(folder: Path) -> Answer:
    with CompletionCache.opened(folder / "generated.jsonl", {"fingerprint": "one", "model": "two"}) as found:
        missing = {k: text for k, text in enumerate(["Paris", "naïve ☃\u2028", ""]) if k not in found}
        if missing:
            found.append(missing)
        return {str(k): found[k] for k in range(3)}


def candidates(folder: Path) -> Answer:
    train = [Record(id=row["id"], prompt=row["prompt"], completion=row["completion"]) for row in small.ROWS]
    found = cached_candidates(BM25S(b=3), train, train, folder)
    return {"indices": found.indices, "bm25": found.bm25}


def plan(folder: Path) -> Answer:
    blocks = [Block([[0, 1], [2]], [[0], [1, 2]]), Block([[3]], [[2, 4]])]
    return {"plan": [(block.queries, block.train) for block in kept_plan(folder / "plan.json", blocks)]}


def model(folder: Path) -> Answer:
    if not (folder / "model").exists():
        small.llama(folder / "model")
        (folder / "model" / "training.json").write_text('{"fingerprint": "one", "loss": [1.0]}')
        seal(folder / "model")
    loaded = load_trained(folder / "model", Pretrained("x", max_length=32), device="cpu", dtype=torch.float32)
    with torch.no_grad():
        return {"logits": loaded.model(torch.tensor([[3, 4, 5]])).logits.numpy(), "fingerprint": loaded.fingerprint}


def checkpoint(folder: Path) -> Answer:
    if not folder.exists():
        save({"step": 2, "w": torch.arange(50.0)}, resume_path(folder, 2))
    found = newest_readable(folder)
    if found is None:  # the training begins anew
        shutil.rmtree(folder)
        return checkpoint(folder)
    return {"w": torch.load(found, weights_only=True)["w"].numpy()}


def recording(folder: Path) -> Answer:
    layout = Layout("one", 2, 1, "sgd", [0.9, 0.99], 1e-8, 0.0, {"w": [2]}, {"w": 0.1}, 4, 2, 2)
    if not folder.exists():
        from tdaexp.training.recorder import Recorder

        recorder, weights = Recorder(folder, layout), torch.arange(2.0, requires_grad=True)
        optimizer = torch.optim.SGD([weights], lr=0.5)
        for step in range(2):
            recorder.before(step, {"w": weights}, optimizer)
            recorder.after(step, {"w": weights + step}, optimizer, (np.array([step, 3]), np.array([0.5, 0.25])))
        recorder.end({"w": weights})
    found = Trajectory(folder)
    batches = [found.batch(step) for step in range(2)]
    states = [found.parameters(step)["w"].numpy() for step in range(3)]
    return {"states": states, "batches": batches, "layout": found.settings, "lr": [found.lr(0), found.lr(1)]}


def influences(folder: Path) -> Answer:
    if not folder.exists():
        values = np.arange(6.0).reshape(2, 3)
        train = np.array([["a", "b", "c"], ["c", "b", ""]], dtype=object)
        made = influence.build(
            values, query=["p", "q"], query_set=["one", "two"], train=train, truth=values > 3, attrs={"method": "full"}
        )
        influence.save(made, folder / "influence.zarr")
    found = influence.load(folder / "influence.zarr")
    assert influence.intact(folder / "influence.zarr")
    return {
        "scores": influence.scores(found).values,
        "attributes": found.attrs,
        "train": found["train"].values.tolist(),
    }


def entries(folder: Path) -> Answer:
    """The note beside an entry decides nothing but whether it is thought to be out of reach."""
    path = cache.entry(folder, "kind", "one", by=[BlockStore])
    path.mkdir(exist_ok=True)
    return {"paths": [one.path for one in cache.listed(folder)]}


@pytest.fixture(
    scope="module",
    params=[block_store, completions, candidates, plan, model, checkpoint, recording, influences, entries],
    ids=lambda read: read.__name__,
)
def kept(request, tmp_path_factory):
    """What the cache holds of one kind, and its answer."""
    folder = tmp_path_factory.mktemp("kept") / request.param.__name__
    return Kept(folder, request.param), request.param(folder)


def same(one: object, other: object) -> bool:
    try:
        np.testing.assert_equal(one, other)
    except AssertionError:
        return False
    return True


@settings(max_examples=16, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_a_changed_byte_never_gives_another_answer(kept, data):
    whole, wanted = kept
    files = sorted(file for file in whole.folder.rglob("*") if file.is_file() and file.stat().st_size)
    file = data.draw(st.sampled_from(files), "file")
    place = data.draw(st.integers(0, file.stat().st_size - 1), "place")
    before = {one: one.read_bytes() for one in files}
    small.flip(file, place, data.draw(st.integers(1, 255), "mask"))
    try:
        found = whole.read(whole.folder)
        assert same(found, wanted), file
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    finally:
        for one in whole.folder.rglob("*"):
            if one.is_file() and one not in before:
                one.unlink()
        for one, content in before.items():
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(content)
