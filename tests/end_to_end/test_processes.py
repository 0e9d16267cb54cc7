"""Several processes: the store of one process, bit for bit, also after one of them was killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from commands import TINY, Commands

from tdaexp import influence

PATIENCE_S = 300
TEXTS = (
    *TINY,
    "trainer.tokens_per_batch=256",
    "trainer.cache_gb=0.0003",
    "dataset.people=24",
    "metric.plots=false",
    "metric.bootstrap=10",
)
TASK = (
    "model=mnist_cnn",
    "dataset=digits",
    "model.padding=1",
    "model.channels=[2,3]",
    "model.hidden=8",
    "dataset.train=160",
    "dataset.test=20",
    "dataset.query_limit=6",
    "trainer.fit.steps=48",
    "trainer.fit.batch_size=16",
    "trainer.fit.evaluate_every=24",
    "method.quadrature.nodes=1",
)
CASES = {
    "select": ("method=select", *TEXTS),
    "project": ("method=project", "budget=0.1", *TEXTS),
    "ekfac": ("method=ekfac", "method.partitions=2", *TEXTS),
    "explaind": ("method=explaind", *TASK, "method.quadrature.rule=gauss"),  # "parts" takes the default, secants
}
TOGETHER = [*((case, "ddp") for case in CASES), ("ekfac", "fsdp")]  # the other methods: tests/models/test_sharded.py

WHOLE = {
    "classifier": ("method=ekfac", *TASK[:-1], "metric.plots=false", "metric.bootstrap=10"),
    "parts": ("method=explaind", *TASK, "method.keep=[query,part]", "method.partition=target"),
    "subsample": ("method=explaind", *TASK, "method.keep=[query,train]", "method.subsample=0.3", "method.single=20"),
    "checkpoints": (
        "experiment=explaind_eurollm",
        "dataset.records=200",
        "dataset.held_out=12",
        "trainer.fit.steps=4",
        "trainer.fit.warmup=1",
        "trainer.fit.batch_size=12",
        "trainer.fit.checkpoint_every=1",
        "method.quadrature.nodes=1",
    ),
}


def start(commands: Commands, case: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    return commands.start(
        "attribute", *(CASES | WHOLE)[case], f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run", *more
    )


@pytest.fixture(scope="module")
def ready() -> dict[str, Path]:
    """Folders of what was run in one process, by case."""
    return {}


@pytest.fixture
def alone(commands: Commands, ready: dict[str, Path], tmp_path_factory) -> Callable[[str], Path]:
    """The same in one process, this one; the folder where it is."""

    def run(case: str) -> Path:
        if case not in ready:
            folder = tmp_path_factory.mktemp("one")
            places = f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"
            commands.done("attribute", *(CASES | WHOLE)[case], *places)
            ready[case] = folder
        return ready[case]

    return run


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return err


def blocks_done(folder: Path) -> int:
    """Blocks of the method's own work; 0 where a folder is renamed meanwhile."""
    try:
        return sum("models" not in path.parts for path in folder.glob("cache/*/[!.]*/**/done/c/*"))
    except FileNotFoundError:
        return 0


def wait_for_a_block(process: subprocess.Popen[str], folder: Path, before: int = 0) -> None:
    """Wait until more blocks are done than there were before."""
    begun = time.monotonic()
    while blocks_done(folder) <= before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.01)


def same_values(one: Path, other: Path) -> None:
    """All variables and coordinates, to the bit; the configuration in the attributes differs."""
    found, wanted = (influence.load(folder / "run" / "influence.zarr") for folder in (one, other))
    xr.testing.assert_identical(found.drop_attrs(), wanted.drop_attrs())


@pytest.mark.long
@pytest.mark.parametrize(("case", "trainer"), TOGETHER)
def test_two_processes_of_which_one_is_killed(commands, alone, tmp_path, case, trainer):
    two = tmp_path / "two"
    process = start(commands, case, two, f"trainer={trainer}", "trainer.devices=2")
    wait_for_a_block(process, two)
    os.kill(json.loads((two / "run" / "heartbeat.json").read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    begun = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begun < 60
    line = commands.one_line(process.returncode, err, expected=1)
    assert "process 0 of 2 ended before its time (SIGKILL)" in line and "goes on where it stopped" in line
    assert not (two / "run" / "influence.zarr").exists()
    err = finish(start(commands, case, two, f"trainer={trainer}", "trainer.devices=2"))
    assert "2 processes" in err and "process 1" not in err
    same_values(two, alone(case))
    cost = json.loads((two / "run" / "cost.json").read_text(encoding="utf-8"))
    assert min(cost.values()) >= 0, cost


@pytest.mark.long
@pytest.mark.parametrize("case", WHOLE)
def test_two_processes_leave_the_store_of_one(commands, alone, tmp_path, case, request):
    """Without a kill: what is not a study of texts."""
    if case == "classifier":
        request.getfixturevalue("executed")
    err = finish(start(commands, case, tmp_path / "two", "trainer=ddp", "trainer.devices=2"))
    assert err.count("plan:") == 1
    same_values(tmp_path / "two", alone(case))
    cost = json.loads((tmp_path / "two" / "run" / "cost.json").read_text(encoding="utf-8"))
    assert min(cost.values()) >= 0, cost


@pytest.mark.long
def test_sigterm_ends_after_the_block_at_hand(commands, alone, tmp_path):
    two = tmp_path / "two"
    for more in ((), ("trainer=ddp", "trainer.devices=2"), ("trainer=fsdp", "trainer.devices=2")):
        before = blocks_done(two)
        process = start(commands, "select", two, *more)
        wait_for_a_block(process, two, before)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 143, err
        assert err.splitlines()[-1].startswith("stopped by SIGTERM") and "goes on where it stopped" in err, err
        assert "Traceback" not in err
        assert json.loads((two / "run" / "row.json").read_text(encoding="utf-8"))["status"] == "stopped"
    err = finish(start(commands, "select", two, "trainer=ddp", "trainer.devices=3"))
    same_values(two, alone("select"))


def outside(commands: Commands, rank: int, port: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start one of two processes as torchrun would."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    given |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0}
    before = dict(os.environ)
    os.environ.update({key: str(value) for key, value in given.items()})
    try:
        return start(commands, "select", folder, "trainer=ddp", *more)
    finally:
        os.environ.clear()
        os.environ.update(before)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.mark.long
def test_processes_from_outside(commands, alone, tmp_path):
    """Those that differ are refused; where one dies the other stops; the third time they finish."""
    port, two = free_port(), tmp_path / "two"
    pair = [outside(commands, rank, port, two, f"seed={rank}") for rank in (0, 1)]
    for process in pair:
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2 and "seed: is 0 in process 0 and 1 in process 1" in err, err
        assert "Traceback" not in err
    port = free_port()
    pair = [outside(commands, rank, port, two) for rank in (0, 1)]
    wait_for_a_block(pair[0], two)
    pair[1].kill()
    begun = time.monotonic()
    _, err = pair[0].communicate(timeout=PATIENCE_S)
    assert time.monotonic() - begun < 60
    commands.one_line(pair[0].returncode, err, expected=1)
    pair[1].communicate()
    port = free_port()
    pair = [outside(commands, rank, port, two) for rank in (0, 1)]
    for process in pair:
        finish(process)
    same_values(two, alone("select"))


def test_what_several_processes_cannot_do_is_refused(commands, monkeypatch):
    commands.done("attribute", *TINY, "method=random", "metric.plots=false")
    assert "trainer.devices=2: several processes need trainer=ddp" in commands.refused("attribute", "trainer.devices=2")
    assert "evaluate reads what is stored" in commands.refused("evaluate", "trainer=ddp", "runs=[outputs]")
    line = commands.refused("attribute", *TINY, "trainer=fsdp", "method=cg")
    assert "method=cg needs the whole model" in line and "project, ekfac" in line
    assert "a model of a task" in commands.refused("attribute", *TASK[:-1], "trainer=fsdp", "method=ekfac")
    assert "model.finetuned names a second" in commands.refused(
        "attribute", "model.pretrained=x", "+model.finetuned=x", "trainer=fsdp"
    )
    assert "trains none; take trainer=ddp" in commands.refused("train", "trainer=fsdp")
    line = commands.refused("attribute", *TINY, "trainer=ddp", "trainer.nodes=2")
    assert "torchrun" in line
    torchrun = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for name, value in {**torchrun, "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert "a torchrun of its own" in commands.refused("attribute", *TINY, "trainer=ddp", "-m", "seed=1,2")
    assert "add trainer=ddp" in commands.refused("attribute", *TINY)
