"""The three commands as a user calls them: in this process where that will do, else as programs of their own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from nursery import popen

from tdaexp.app import main

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = (
    "model.config.hidden_size=16",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=24",
    "model.vocab_size=320",
    "dataset.people=10",
    "trainer.fit.steps=5",
    "trainer.fit.batch_size=8",
    "decoding.max_new_tokens=6",
    "metric.bootstrap=50",
)
"""The embedded default, so small that a run takes about a second."""


class Commands:
    """Runs the commands in a working folder; trained models and products are shared by all tests."""

    def __init__(self, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.cache, self.capfd = cache, capfd

    def __call__(self, stage: str, *arguments: str) -> tuple[int, str]:
        """Run in this process; returns the exit code and what was written to stderr."""
        self.capfd.readouterr()
        code = main(stage, REPOSITORY / "conf", [f"{stage}.py", *self.arguments(arguments)])
        return code, self.capfd.readouterr().err

    def done(self, stage: str, *arguments: str) -> str:
        """Run, expect success, and return what was written to stderr."""
        code, err = self(stage, *arguments)
        assert code == 0, err
        return err

    def refused(self, stage: str, *arguments: str) -> str:
        """Run, expect one line and exit code 2, and return the line."""
        code, err = self(stage, *arguments)
        return self.one_line(code, err)

    @staticmethod
    def one_line(code: int, err: str, expected: int = 2) -> str:
        """Check that a run ended in one line that begins with `error:` (what it reported before does not count)."""
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert code == expected, err
        assert len(lines) == 1 and err.rstrip().endswith(lines[0]) and "Traceback" not in err, err
        return lines[0]

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with a quiet logger and the common cache, unless they name their own."""
        common = {"logger": "logger=none", "cache_dir": f"cache_dir={self.cache}"}
        given = {argument.partition("=")[0] for argument in arguments}
        return [*arguments, *(text for key, text in common.items() if key not in given)]

    def start(self, stage: str, *arguments: str) -> subprocess.Popen[str]:
        """Start as a program of its own."""
        command = [sys.executable, str(REPOSITORY / f"{stage}.py"), *self.arguments(arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        return popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def process(self, stage: str, *arguments: str) -> tuple[int, str]:
        """Run as a program of its own; returns the exit code and what was written to stderr."""
        started = self.start(stage, *arguments)
        _, err = started.communicate(timeout=300)
        return started.returncode, err


def only(pattern: str, folder: Path | None = None) -> Path:
    """The one file that a pattern below the folder (by default the working folder) matches."""
    (found,) = (folder or Path()).glob(pattern)
    return found


def metrics(folder: Path) -> dict[str, float]:
    """A run's metrics."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def rows(folder: Path) -> list[dict[str, str]]:
    """A sweep's table."""
    return list(csv.DictReader((folder / "sweep.csv").read_text(encoding="utf-8").splitlines()))
