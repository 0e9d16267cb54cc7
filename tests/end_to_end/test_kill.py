"""SIGKILL at random moments: run again, the command leaves the store of an undisturbed run, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import TINY, only

MANY_BLOCKS = ("trainer.tokens_per_batch=256", "trainer.cache_gb=0.0003", "dataset.people=14", "metric.plots=false")
"""Many small blocks of work, so that the moments fall between different ones."""
PATIENCE_S = 300


def arguments(folder: Path, *own: str) -> list[str]:
    """A command that works in a folder."""
    places = [f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run/0", f"hydra.sweep.dir={folder}/run"]
    return [*TINY, *MANY_BLOCKS, *places, "trainer.fit.checkpoint_every=2", "trainer.fit.steps=12", *own]


def wait_for_work(process: subprocess.Popen[str]) -> None:
    """Wait until the process has told its plan, after which the work begins."""
    assert process.stderr is not None
    while not process.stderr.readline().startswith("plan:"):
        assert process.poll() is None


def stores(folder: Path) -> dict[str, bytes]:
    """Every file of the influence stores."""
    files = [file for root in folder.glob("run/*/influence.zarr") for file in root.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.long
def test_killed_at_three_random_moments(commands, tmp_path):
    """A sweep over three methods, whose moments fall into different ones."""
    sweep, undisturbed = ("-m", "method=select,project,ekfac"), tmp_path / "undisturbed"
    begun = time.monotonic()
    commands.done("attribute", *arguments(undisturbed, *sweep))
    length = time.monotonic() - begun
    # the start is a part of the length, and not of the moments: one at least must come before the end
    moments = sorted(random.uniform(0, share * length) for share in (0.3, 0.6, 1))
    print(f"killed at {moments} of {length:.1f} s")  # shown when the test fails
    disturbed, killed = tmp_path / "disturbed", 0
    for moment in moments:
        process = commands.start("attribute", *arguments(disturbed, *sweep))
        wait_for_work(process)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    commands.done("attribute", *arguments(disturbed, *sweep))
    expected = stores(undisturbed)
    assert len(expected) > 30 and stores(disturbed) == expected


@pytest.mark.long
def test_killed_between_blocks(commands, tmp_path):
    """The products of a killed run are kept: only the other blocks are computed again."""
    commands.done("attribute", *arguments(tmp_path / "straight", "method=full"))
    process = commands.start("attribute", *arguments(tmp_path / "killed", "method=full"))
    while not (done := blocks(tmp_path / "killed")).size or not 0 < done.sum() < done.size:
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    before = seconds(tmp_path / "killed")
    kept = blocks(tmp_path / "killed")
    assert 0 < kept.sum() < kept.size
    commands.done("attribute", *arguments(tmp_path / "killed", "method=full"))
    assert blocks(tmp_path / "killed").all()
    assert (seconds(tmp_path / "killed")[kept] == before[kept]).all()
    assert stores(tmp_path / "killed") == stores(tmp_path / "straight")


def blocks(folder: Path) -> np.ndarray:
    """Which blocks of the products are done; empty as long as there is no store."""
    complete = list((folder / "cache").glob("products/[!.]*/zarr.json"))
    return array(folder, "done") if complete else np.zeros(0, dtype=bool)


def seconds(folder: Path) -> np.ndarray:
    """How long each block took."""
    return array(folder, "seconds")


def array(folder: Path, name: str) -> np.ndarray:
    path = only("cache/products/[!.]*/zarr.json", folder).parent
    return np.asarray(zarr.open_group(path, mode="r")[name][:])
