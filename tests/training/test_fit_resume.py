import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from nursery import popen

from tdaexp.runtime.files import disk_full
from tdaexp.training.fit import fit


@pytest.fixture
def again(config, records, examples, settings, tmp_path):
    """Train in the folder `cut`, from a new start each time."""

    def run():
        return fit(config.start([r.text for r in records]), examples, settings, folder=tmp_path / "cut", seed=3)

    return run


@pytest.mark.parametrize("step", [0, 3, 4, 6])
def test_a_resumed_run_equals_the_straight_one_bit_for_bit(
    again, straight, same, losses, kill_at, step, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch, pytest.raises(kill_at(step, patch)):
        again()
    assert not (tmp_path / "cut" / "model").exists()
    with caplog.at_level(logging.INFO):
        result = again()
    assert ("going on from" in caplog.text) == (step >= 2)
    assert f"{7 - step // 2 * 2} steps in" in caplog.text
    assert same(result, straight)
    assert losses(result) == losses(straight)


def test_a_truncated_checkpoint_costs_time_only(again, straight, same, kill_at, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(kill_at(5, patch)):
        again()
    newest = tmp_path / "cut" / "resume" / "step-00000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert same(again(), straight)
    assert "step-00000004.ckpt is damaged" in caplog.text


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(again, straight, same, tmp_path, monkeypatch):
    saved, original = [], torch.save

    def fill(value, stream):
        saved.append(stream)
        if len(saved) == 2:
            with open("/dev/full", "wb") as full:
                original(value, full)
        original(value, stream)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(Exception) as caught:
            again()
        assert disk_full(caught.value)
    left = sorted(path.name for path in (tmp_path / "cut" / "resume").iterdir())
    assert left == ["step-00000002.ckpt", "step-00000002.digest"]
    assert same(again(), straight)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import SMALL
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.scratch import Scratch
from tdaexp.training.fit import fit
from tdaexp.training.settings import FitSettings
records = [Record(f"r{i}", f"Where was person {i} born?", f"In city {i * i}.") for i in range(10)]
start = Scratch("olmo", SMALL, vocab_size=280, context=64).start([record.text for record in records])
examples = tokenise(records, start.tokenizer, template="plain", max_length=64)
settings = FitSettings(steps=100, batch_size=4, lr=1e-2, warmup=2, checkpoint_every=5)
fit(start, examples, settings, folder=Path(sys.argv[1]), seed=0)
"""


@pytest.mark.long
def test_sigkill_and_again_gives_the_same_bits(tmp_path, same):
    def command(folder):
        return [sys.executable, "-c", SCRIPT, str(folder), str(Path(__file__).parent)]

    assert popen(command(tmp_path / "straight"), cwd=tmp_path).wait() == 0
    process = popen(command(tmp_path / "cut"), cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cut").glob("resume/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert not (tmp_path / "cut" / "model").exists()
    assert popen(command(tmp_path / "cut"), cwd=tmp_path).wait() == 0
    assert same(tmp_path / "cut" / "model", tmp_path / "straight" / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "straight"}  # nothing beside the folders
