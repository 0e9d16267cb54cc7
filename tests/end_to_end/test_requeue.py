"""A job of a sweep on Slurm that is pre-empted, then out of time, and begins again: it goes on where it stopped.

The cluster's commands are fakes that write down how they were called; submitit and the jobs are real.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import REPOSITORY, TINY, only
from nursery import popen

from tdaexp import influence

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

JOB = (*TINY, "dataset.people=40", "trainer.tokens_per_batch=256", "trainer.cache_gb=0.0005", "metric.plots=false",
       "metric.bootstrap=10", "budget=0.3")  # fmt: skip
PATIENCE_S = 60
ALLOTTED = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SUBMITIT_EXECUTOR": "slurm"}


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.01)


def blocks() -> np.ndarray:
    """Seconds of each block of products that is done; 0 where it is not."""
    complete = list(Path("cache").glob("products/[!.]*/zarr.json"))
    if not complete:
        return np.zeros(0)
    group = zarr.open_group(complete[0].parent, mode="r")
    return np.asarray(group["seconds"][:]) * np.asarray(group["done"][:])


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """Commands of a cluster that has queued every job as number 7; returns the file with the calls of `scontrol`."""
    calls, places = tmp_path / "calls.txt", tmp_path / "bin"
    places.mkdir()
    texts = {
        "srun": "true",
        "sacct": "true",
        "sbatch": "echo Submitted batch job 7",
        "scontrol": f'echo "$@" >> {calls}',
    }
    for name, text in texts.items():
        (places / name).write_text(f"#!/bin/sh\n{text}\n")
        (places / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{places}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return calls


def begin(folder: Path) -> subprocess.Popen[str]:
    """Start the job as its script does."""
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    environment = {**os.environ, **ALLOTTED, "PYTHONWARNINGS": "ignore"}
    return popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_a_job_that_is_queued_again_goes_on(commands, cluster):
    commands.done("attribute", *JOB, "hydra.run.dir=alone")
    arguments = (*JOB, "-m", "hydra/launcher=slurm", "hydra.sweep.dir=sweep", "cache_dir=cache")
    launcher = commands.start("attribute", *arguments)
    queued = Path("sweep/.submitit/7/7_submitted.pkl")
    wait_until(queued.exists, launcher)
    folder = queued.parent.absolute()
    launcher.kill()  # whoever submitted has gone home
    launcher.communicate()
    kept = np.zeros(0)
    for signals in ((signal.SIGCONT, signal.SIGTERM), (signal.SIGUSR2,)):
        job = begin(folder)
        wait_until(lambda known=kept: np.count_nonzero(blocks()) > np.count_nonzero(known), job)
        for one in signals:
            job.send_signal(one)
        out, err = job.communicate(timeout=PATIENCE_S)
        assert job.returncode != 0, err
        now = blocks()
        assert 0 < np.count_nonzero(now) < len(now), (out, err)  # it was in the middle
        assert (now[: len(kept)] == kept)[kept > 0].all() if len(kept) else True
        kept = now
    assert cluster.read_text(encoding="utf-8") == "requeue 7\n"  # out of time it asks for that itself
    job = begin(folder)
    _, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, err
    assert (blocks()[kept > 0] == kept[kept > 0]).all() and (blocks() > 0).all()
    assert json.loads(only("sweep/0*/row.json").read_text(encoding="utf-8"))["status"] == "done"
    found, wanted = (influence.load(only(f"{place}/influence.zarr")) for place in ("sweep/0*", "alone"))
    assert found.drop_attrs().identical(wanted.drop_attrs())
