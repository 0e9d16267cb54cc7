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

MANY_BLOCKS = ("trainer.tokens_per_batch=256", "trainer.cache_gb=0.0005", "dataset.people=60", "metric.plots=false")
"""Many small blocks of work, so that the moments fall between different ones."""
PATIENCE_S = 300


def start(commands, method: str, folder: Path) -> subprocess.Popen[str]:
    arguments = [*TINY, *MANY_BLOCKS, f"method={method}", f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run"]
    return commands.start("attribute", *arguments, "trainer.fit.checkpoint_every=2", "trainer.fit.steps=12")


def seconds_until(process: subprocess.Popen[str], path: Path) -> float:
    """Wait until the process has made `path`."""
    begun = time.monotonic()
    while not path.exists():
        assert process.poll() is None and time.monotonic() - begun < PATIENCE_S
        time.sleep(0.01)
    return time.monotonic() - begun


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


def store(folder: Path) -> dict[str, bytes]:
    """Every file of the influence store."""
    root = folder / "run" / "influence.zarr"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.long
@pytest.mark.parametrize("method", ["select", "project", "ekfac"])
def test_killed_at_three_random_moments(commands, tmp_path, method):
    undisturbed = tmp_path / "undisturbed"
    process = start(commands, method, undisturbed)
    seconds_until(process, undisturbed / "cache")
    begun = time.monotonic()
    finish(process)
    length = time.monotonic() - begun
    moments = sorted(random.uniform(0, length) for _ in range(3))
    print(f"killed at {moments} of {length:.1f} s")  # shown when the test fails
    disturbed, killed = tmp_path / "disturbed", 0
    for moment in moments:
        process = start(commands, method, disturbed)
        seconds_until(process, disturbed / "cache")
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    finish(start(commands, method, disturbed))
    expected = store(undisturbed)
    assert len(expected) > 10 and store(disturbed) == expected


@pytest.mark.long
def test_killed_between_blocks(commands, tmp_path):
    """The products of a killed run are kept: only the other blocks are computed again."""
    process = start(commands, "full", tmp_path / "straight")
    finish(process)
    process = start(commands, "full", tmp_path / "killed")
    while not (done := blocks(tmp_path / "killed")).size or not 0 < done.sum() < done.size:
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    before = seconds(tmp_path / "killed")
    kept = blocks(tmp_path / "killed")
    assert 0 < kept.sum() < kept.size
    finish(start(commands, "full", tmp_path / "killed"))
    assert blocks(tmp_path / "killed").all()
    assert (seconds(tmp_path / "killed")[kept] == before[kept]).all()
    assert store(tmp_path / "killed") == store(tmp_path / "straight")


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
