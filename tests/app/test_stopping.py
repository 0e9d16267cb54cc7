"""SIGTERM and Ctrl-C: where a run ends, what its row says, the exit code; nothing else of a sweep begins."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tdaexp.app import sweep

PATIENCE_S = 60
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
WORDS = {signal.SIGTERM: (143, "stopped by SIGTERM"), signal.SIGINT: (130, "interrupted")}


def wait_for(program, pattern, process, count=1):
    begun = time.monotonic()
    while len(list(program.folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.02)


def ended(process, number):
    """The process ends as one that was asked to; returns what it said."""
    _, err = process.communicate(timeout=PATIENCE_S)
    code, words = WORDS[number]
    assert process.returncode == code, err
    assert "Traceback" not in err and err.splitlines()[-1].startswith(f"{words}: what is finished is kept"), err
    return err


def begun(folder):
    """Blocks that were begun and finished, by job."""
    return {job.name[0]: len(list(job.glob("block*"))) for job in folder.glob("multirun/*/*=*")}


@pytest.mark.long
@pytest.mark.parametrize("number", WORDS)
def test_a_sweep_ends_with_the_job_at_hand(program, number):
    arguments = ("-m", "seed=1,2,3", "method=full", "method.do=blocks", "logger=none")
    process = program.start(*arguments)
    wait_for(program, "multirun/*/0*/block1", process)
    process.send_signal(number)
    ended(process, number)
    (row,) = sweep.rows(program.folder)
    assert (row.job, row.status, row.error) == (0, "stopped", WORDS[number][1])
    (jobs,) = program.folder.glob("multirun/*")
    assert 2 <= begun(program.folder)["0"] < 1000 and not list(jobs.glob("1*")) and not (jobs / ".stop").exists()
    assert "stopped" in (jobs / "sweep.csv").read_text()
    assert program(*arguments, "method.do=work", f"hydra.sweep.dir={jobs}", "resume=true")[0] == 0
    assert [row.status for row in sweep.rows(program.folder)] == ["done"] * 3


@pytest.mark.long
@pytest.mark.parametrize("whom", ["parent", "child", "group"])
def test_jobs_side_by_side_end_together(program, whom):
    """`group` is Ctrl-C in a terminal, which every process hears."""
    process = program.start("-m", "seed=1,2,3,4", "method=full", "method.do=blocks", "logger=none", *JOBLIB)
    wait_for(program, "multirun/*/*/block1", process, 2)
    number = signal.SIGINT if whom == "group" else signal.SIGTERM
    if whom == "child":
        beat = next(program.folder.glob("multirun/*/*/heartbeat.json"))
        os.kill(json.loads(beat.read_text())["pid"], number)
    elif whom == "group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    ended(process, number)
    found = sweep.rows(program.folder)
    assert [(row.status, row.error) for row in found] == [("stopped", WORDS[number][1])] * 2, found
    assert all(2 <= count < 1000 for job, count in begun(program.folder).items() if job in "01")


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.long
def test_where_no_block_is_at_hand_a_run_ends_at_once(program, number):
    process = program.start("method=full", "method.do=load", "logger=none")
    wait_for(program, "outputs/*/*/loading", process)
    moment = time.monotonic()
    process.send_signal(number)
    ended(process, number)
    assert time.monotonic() - moment < 10
    (row,) = sweep.rows(program.folder)
    assert (row.status, row.error) == ("stopped", WORDS[number][1])


def test_a_sweep_that_is_asked_before_its_first_job_starts_none(program, executed):
    process = program.start("-m", "seed=1,2", "method=full", "method.do=blocks", "logger=none")
    while not caught(process.pid, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    ended(process, signal.SIGTERM)
    assert not sweep.rows(program.folder)


def caught(pid, number):
    """Whether a process listens to a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(mask >> (number - 1) & 1)
