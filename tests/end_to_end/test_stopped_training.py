"""SIGTERM and Ctrl-C inside a training: exit code, a checkpoint; the same command goes on to the same weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from commands import TINY

import tdaexp.training.module as causal
import tdaexp.training.recorded as loop
import tdaexp.training.recorder as recorder
from tdaexp.runtime import stop

LANGUAGE = tuple(text for text in TINY if not text.startswith(("decoding", "metric")))
TASK = ("model=mnist_cnn", "dataset=digits", "model.padding=1", "model.channels=[2,3]", "model.hidden=8",
        "dataset.train=60", "dataset.test=20", "trainer.fit.steps=7", "trainer.fit.batch_size=16",
        "trainer.fit.checkpoint_every=5")  # fmt: skip
CASES = {
    "language": (causal, "batch_indices", LANGUAGE),
    "task": (loop, "step_batch", (*TASK, "trainer.fit.record=0")),
    "recorded": (loop, "step_batch", (*TASK, "trainer.fit.record=1")),
}


def weights(cache: Path) -> bytes:
    (file,) = cache.glob("models/*/model/*.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize(
    ("case", "number", "expected", "words"),
    [
        *((case, signal.SIGTERM, 143, "stopped by SIGTERM") for case in CASES),
        *((case, signal.SIGINT, 130, "interrupted") for case in ("language", "recorded")),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(
    commands, tmp_path, monkeypatch, case, number, expected, words
):
    module, name, arguments = CASES[case]
    monkeypatch.setattr(recorder, "BLOCK_BYTES", 1)  # a step at a time; a training ends between two of its blocks
    commands.done("train", *arguments, "cache_dir=straight")
    command = (*arguments, "cache_dir=cut", "hydra.run.dir=run")
    own = getattr(module, name)
    with monkeypatch.context() as patch:

        def batch(step, **rest):
            if step == 2:
                signal.raise_signal(number)
            return own(step, **rest)

        patch.setattr(module, name, batch)
        code, err = commands("train", *command)
    assert code == expected and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith(f"{words}: what is finished is kept; the same command goes on")
    assert json.loads(Path("run/row.json").read_text(encoding="utf-8"))["status"] == "stopped"
    (checkpoint,) = Path("cut").glob("models/*/resume/step-*3.ckpt")
    assert f"going on from {checkpoint}" in commands.done("train", *command)
    assert weights(Path("cut")) == weights(Path("straight"))


def test_ctrl_c_twice_ends_a_training_at_once(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(stop, "AGAIN_S", 0.0)
    own = causal.batch_indices

    def batch(step, **rest):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return own(step, **rest)

    monkeypatch.setattr(causal, "batch_indices", batch)
    code, err = commands("train", *LANGUAGE, "cache_dir=cut", "hydra.run.dir=run")
    assert code == 130 and "Traceback" not in err and err.splitlines()[-1].startswith("interrupted: what"), err
    assert json.loads(Path("run/row.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert not list(Path("cut").glob("models/*/resume/*.ckpt"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
