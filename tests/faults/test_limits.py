"""Sizes that cannot work, and processes that would never meet, are refused before anything is built; no silence."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from commands import TINY

from tdaexp.curvature.arnoldi import dominant_eigenpairs
from tdaexp.runtime import limits, progress, silence
from tdaexp.runtime.errors import UserError

LANGUAGE = tuple(text for text in TINY if not text.startswith(("decoding", "metric")))
BIG = 10**12


@pytest.mark.parametrize(
    ("stage", "arguments", "said"),
    [
        ("train", ["trainer.fit.batch_size=1000000"], "trainer.fit.batch_size=1000000: a step over examples"),
        ("train", [f"trainer.fit.batch_size={BIG}"], "GB are free"),
        ("train", ["model.vocab_size=100000000000"], "model.vocab_size=100000000000: must be at most"),
        ("train", ["model.config.hidden_size=1000000"], "model.config: training 8e+12 parameters"),
        ("train", [f"model.config.hidden_size={BIG}"], "must be an integer from 1 to 2147483648"),
        ("train", ["model.config.intermediate_size=2000000000"], "GB are free"),
        (
            "train",
            ["model.config.num_hidden_layers=1000000"],
            "model.config.num_hidden_layers=1000000: must be an integer from 1 to 1000",
        ),
        ("train", [f"dataset.people={BIG}"], f"dataset.people={BIG}: must lie between"),
        ("train", ["trainer.threads=1000000"], "trainer.threads=1000000: must be at most"),
        ("train", ["trainer=ddp", "trainer.devices=1000000"], "trainer.devices=1000000"),
        ("train", ["trainer.nodes=3"], "trainer.nodes=3: several machines need trainer=ddp"),
        ("attribute", [f"metric.bootstrap={BIG}"], f"metric.bootstrap={BIG}: must be at most"),
    ],
)
def test_a_size_that_cannot_work_is_refused_with_its_limit(commands, monkeypatch, stage, arguments, said):
    monkeypatch.setattr(limits, "available_bytes", lambda device=None: 20e9)
    given = {text.partition("=")[0] for text in arguments}
    tiny = [text for text in (TINY if stage == "attribute" else LANGUAGE) if text.partition("=")[0] not in given]
    assert said in commands.refused(stage, *tiny, *arguments)


def test_arnoldi_takes_no_more_steps_than_there_are_parameters(tmp_path):
    matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    found = dominant_eigenpairs(
        lambda vectors: vectors @ matrix,
        torch.ones(4, dtype=torch.float64),
        steps=BIG,
        rank=2,
        store=tmp_path / "store",
    )
    assert found.values == pytest.approx([4.0, 3.0])


def test_generated_data_that_no_memory_holds_is_refused(commands):
    language = ("model=toy_eurollm", "dataset=multilingual", f"dataset.records={BIG}")
    assert f"dataset.records={BIG}" in commands.refused("train", *language)
    task = ("model=grokking", "dataset=modular_addition", f"dataset.modulus={BIG}")
    assert f"dataset.modulus={BIG}" in commands.refused("train", *task)


def test_a_batch_that_repeats_the_examples_is_told(commands):
    err = commands.done("train", *LANGUAGE, "trainer.fit.batch_size=50", "trainer.fit.steps=1")
    assert "trainer.fit.batch_size=50: each step takes the 20 examples about 2.5 times" in err


def test_memory_is_that_of_the_control_group(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "GROUP", tmp_path)
    whole = limits.available_bytes()
    assert whole > 1e6
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert limits.available_bytes() == 2e6
    with pytest.raises(UserError, match=r"key=1 needs about 0.003 GB of memory, 0.002 GB are free; less"):
        limits.refuse_beyond(3e6, "key=1", "less")


OUTSIDE = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
OUTSIDE |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be an integer from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT=abc"),
        ({**OUTSIDE, "WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({**OUTSIDE, "RANK": "2"}, "RANK=2: must be an integer from 0 to 1"),
        ({**OUTSIDE, "RANK": "-1"}, "RANK=-1"),
        ({**OUTSIDE, "LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({**OUTSIDE, "MASTER_ADDR": "no such host"}, "MASTER_ADDR=no such host: no such host"),
        ({**OUTSIDE, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**SLURM, "SLURM_NTASKS": "many"}, "SLURM_NTASKS=many"),
        ({**SLURM, "SLURM_PROCID": "7"}, "SLURM_PROCID=7: must be an integer from 0 to 1"),
        ({**SLURM, "SLURM_JOB_ID": "none"}, "SLURM_JOB_ID=none"),
    ],
)
def test_variables_by_which_processes_would_never_meet_are_refused(commands, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert said in commands.refused("attribute", *TINY, "trainer=ddp", "trainer.devices=2")


def test_processes_that_do_not_meet_end_in_one_line(monkeypatch):
    """One of two that torchrun would have started."""
    from datetime import timedelta

    from tdaexp.runtime import fabric
    from tdaexp.runtime.launch import Team, run_together

    monkeypatch.setattr(fabric, "MEETING", timedelta(seconds=2))
    for name, value in {**OUTSIDE, "MASTER_PORT": "29417", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"process 0 of 2 did not meet the others at MASTER_ADDR=127.0.0.1"):
        run_together(Team("cpu"), {}, print)


def test_where_nothing_is_shown_a_line_says_what_is_done(monkeypatch, caplog):
    monkeypatch.setattr(silence, "SECONDS_TO_FIRST", 0.2)
    monkeypatch.setattr(silence, "LOOK_S", 0.05)
    with caplog.at_level(logging.INFO, logger="tdaexp"), silence.never_silent():
        progress.doing("reading the data")
        time.sleep(0.5)
        progress.place.total = 7
        time.sleep(0.5)
    assert caplog.messages[0].startswith("reading the data: still at it after")
    assert caplog.messages[1].startswith("reading the data, 0 of 7 done: still at it after")
    assert len(caplog.messages) == 2  # the pauses grow


def test_what_is_logged_by_itself_is_not_told_twice(monkeypatch, caplog):
    monkeypatch.setattr(silence, "SECONDS_TO_FIRST", 0.3)
    monkeypatch.setattr(silence, "LOOK_S", 0.02)
    with caplog.at_level(logging.INFO, logger="tdaexp"), silence.never_silent():
        for _ in range(8):
            logging.getLogger("tdaexp.other").info("a line")
            time.sleep(0.1)
    assert set(caplog.messages) == {"a line"}
