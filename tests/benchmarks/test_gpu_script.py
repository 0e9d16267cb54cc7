"""The GPU script in tiny sizes on the CPU: every row runs, and one that fails or takes too long leaves the others."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nursery
import pytest
import torch

from tdaexp.planning.texts import text_work
from tdaexp.runtime.rehearsal import Rehearsal

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
ROWS = ["select", "factorised-1", "factorised-5", "srht-1", "srht-5", "ekfac", "ekfac-1b", "explaind", "grokking"]


def run(out: Path, *arguments: str) -> tuple[int, list[str], list[dict[str, Any]]]:
    """Exit code, the table's rows, and the records on disk."""
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    done = nursery.run(command)
    table = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert len(table) == len(ROWS), done.stderr
    return done.returncode, table, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.long
def test_every_row_is_measured_and_a_late_one_leaves_the_others(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    code, table, records = run(out, "--tiny", "--share", "select=0.5", "srht-1=1", "grokking=0.5")
    assert code == 0 and [one["row"] for one in records] == ROWS
    assert not [line for line in table if "not measured" in line]
    for one in records:
        assert one["minutes"] > 0 and one["process_gb"] > 0 and one["plan_tflop"] > 0
        rate = one["plan_tflop"] / (60 * one["minutes"]) / one["ceiling_tflops"]
        assert one["share_of_ceiling"] == pytest.approx(rate)
    assert "a share (0.5): 4 of 8 queries, 6 of 6 examples" in table[0]
    assert "| 8 of 8 queries, 6 of 6 examples" in table[3]  # the whole work is not called a share
    assert "a share (0.5): 2 of 4 steps" in table[8]
    code, again, records = run(out, "--tiny", "--rows", "select", "--limit", "0.001")
    assert code == 1 and len(records) == len(ROWS) + 1
    assert "not measured: not done after 0.001 seconds" in again[0]
    assert again[1:] == table[1:]  # what was measured before is still there


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    code, table, records = run(tmp_path / "rows.jsonl", "--rows", "grokking")
    assert code == 1 and "no CUDA device" in records[0]["failed"]
    assert "not measured: RuntimeError: no CUDA device" in table[8]
    assert all("| not measured | - |" in line for line in table[:8])


@pytest.mark.parametrize(
    ("row", "parameters", "queries", "candidates"),
    [
        ("select", 1_176_764_416, 1_976, 5),
        ("srht-5", 1_176_764_416, 1_976, 5),
        ("ekfac", 559_214_592, 100, 100),
    ],
)
def test_full_sizes_are_those_that_are_announced(
    script: ModuleType, tmp_path: Path, row: str, parameters: int, queries: int, candidates: int
) -> None:
    work = text_work(script.ROWS[row].config(str(tmp_path), False), None, Rehearsal())[0]
    assert (work.every.total, *work.pairs.shape) == (parameters, queries, candidates)


def test_a_row_whose_work_fails_or_is_killed_says_so(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def die(*_: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    for work, said in ((fail, "OutOfMemoryError: CUDA out of memory"), (die, "its process was killed (exit code -9)")):
        monkeypatch.setitem(script.ROWS, "select", script.Row("`select`", [], work))
        found = script.run("select", 1.0, True, 60)
        assert found["failed"] == said
        assert script.line("select", found) == f"| `select` | not measured: {said} | - | - | - |"


def test_shares_are_checked(script: ModuleType) -> None:
    assert script.shares(["select=0.1"])["select"] == 0.1
    for bad in ("select=2", "select=0", "selct=0.5"):
        with pytest.raises(ValueError, match="needs ROW=FRACTION"):
            script.shares([bad])
