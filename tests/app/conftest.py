"""A small program of stand-in classes and stages, with the project's own root and settings files."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nursery import popen

from tdaexp.app import main

REPOSITORY = Path(__file__).resolve().parents[2]

STANDIN = """
import errno, json, os, signal, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
import numpy as np
from tdaexp import influence
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track

@dataclass
class Model:
    width: int = 8
    pretrained: str | None = None

    def start_fingerprint(self):
        return str(self.width)

class Provider:
    pass

@dataclass
class Local(Provider):
    endpoint: str
    retries: int = 2

@dataclass
class Decoding:
    seed: int

    def deciding(self):
        return {}

@dataclass
class Data:
    path: str
    people: int = 3
    query_sets: list[str] = field(default_factory=lambda: ["paraphrased"])
    paraphrase: Any = None
    provider: Provider | None = None

    def check_source(self):
        return

    def load(self):
        return

@dataclass
class Candidates:
    b: int = 5

    def select(self, queries, train):
        return

    def size(self, train):
        return self.b

class Scores:
    def attribute(self, study):
        return

    def from_products(self, products):
        return

@dataclass
class Select(Scores):
    budget: float | None = None
    order: str = "greedy"
    names: list[str] | None = None

    def __post_init__(self):
        if self.order not in ("greedy", "single"):
            raise unknown("value", self.order, ("greedy", "single"), "method.order")

@dataclass
class Act(Scores):
    do: str = "work"
    marker: str | None = None

def finish(folder, logger, metrics):
    (folder / "metrics.json").write_text(json.dumps(metrics))
    logger.log_metrics(metrics)
    return metrics

def train(cfg, folder, logger):
    return finish(folder, logger, {"loss": 1.0 / cfg.trainer.fit.steps})

def evaluate(cfg, folder, logger):
    return finish(folder, logger, {"runs": float(len(cfg.found.stores))})

def attribute(cfg, folder, logger):
    assert isinstance(folder, Path) and (folder / "config.yaml").exists()
    do = getattr(cfg.method, "do", "work")
    if do == "mistake":
        raise UserError("data.jsonl: line 3: no column 'prompt'")
    if do == "bug":
        raise ZeroDivisionError("a fault")
    if do == "disk":
        raise RuntimeError("zarr") from OSError(errno.ENOSPC, "No space left on device")
    if do == "interrupt":
        raise KeyboardInterrupt
    if do == "blocks":  # far too many, unless asked to end
        for number in track(range(1000), "blocks", 1000, stoppable=True):
            time.sleep(0.1)
            (folder / f"block{number}").touch()
    if do == "load":
        (folder / "loading").touch()
        time.sleep(60)
    if do == "kill" and not Path(cfg.method.marker).exists():
        Path(cfg.method.marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    ids = {"query": ["q"], "query_set": ["s"], "train": np.array([["t"]])}
    store = influence.build(np.ones((1, 1)), truth=np.ones((1, 1)), **ids)
    influence.save(store, folder / "influence.zarr")
    (folder / "report.html").touch()
    with open("calls.txt", "a") as stream:
        stream.write(f"{folder}\\n")
    accuracy = float(getattr(cfg.method, "budget", None) or 0.5)
    return finish(folder, logger, {"accuracy": accuracy, "queries": 3.0})
"""

FILES = {
    "model/toy_gpt.yaml": "_target_: standin.Model\nwidth: 8\n",
    "model/wide.yaml": "_target_: standin.Model\nwidth: 64\n",
    "dataset/biographies.yaml": "_target_: standin.Data\npath: here\n",
    "dataset/lost.yaml": "_target_: standin.Data\npath: ???\n",
    "dataset/nested.yaml": (
        "_target_: standin.Data\npath: here\nparaphrase:\n  _target_: standin.Local\n  endpoint: local\n"
    ),
    "candidates/auto.yaml": "_target_: standin.Candidates\nb: 5\n",
    "decoding/greedy.yaml": "_target_: standin.Decoding\nseed: ${seed}\n",
    "method/select.yaml": "_target_: standin.Select\nbudget: ${budget}\n",
    "method/project.yaml": "_target_: standin.Select\nbudget: ${budget}\norder: single\n",
    "method/full.yaml": "_target_: standin.Act\n",
    "experiment/wide.yaml": "# @package _global_\ndefaults:\n  - override /model: wide\nseed: 7\n",
    "experiment/sweep.yaml": (
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      budget: 0.1,0.2\n"
    ),
}


class Program:
    """The stand-in program in a folder of its own."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.conf, self.capfd = folder, folder / "conf", capfd
        for part in ("trainer", "metric", "logger", "hydra"):
            shutil.copytree(REPOSITORY / "conf" / part, self.conf / part)
        for stage in ("train", "attribute", "evaluate"):
            shutil.copy(REPOSITORY / "conf" / f"{stage}.yaml", self.conf)
            (folder / f"{stage}.py").write_text(
                textwrap.dedent(f"""\
                import sys
                from pathlib import Path
                from tdaexp.app import main
                if __name__ == "__main__":
                    conf = Path(__file__).resolve().parent / "conf"
                    sys.exit(main("{stage}", conf, packages=("tdaexp", "standin"), module="standin"))
                """)
            )
        for name, text in FILES.items():
            self.write(name, text)
        (folder / "standin.py").write_text(STANDIN)

    def write(self, name: str, text: str) -> None:
        """Write a file below conf/."""
        (self.conf / name).parent.mkdir(parents=True, exist_ok=True)
        (self.conf / name).write_text(text)

    def __call__(self, *arguments: str, stage: str = "attribute", logger: str = "none") -> tuple[int, str]:
        """Run in this process; returns the exit code and what was written to stderr."""
        argv = [f"{stage}.py", f"logger={logger}", *arguments]
        self.capfd.readouterr()
        code = main(stage, self.conf, argv, packages=("tdaexp", "standin"), module="standin")
        return code, self.capfd.readouterr().err

    def process(self, *arguments: str, stage: str = "attribute") -> subprocess.CompletedProcess[str]:
        """Run as a program of its own."""
        started = self.start(*arguments, stage=stage)
        out, err = started.communicate()
        return subprocess.CompletedProcess(started.args, started.returncode, out, err)

    def start(self, *arguments: str, stage: str = "attribute") -> subprocess.Popen[str]:
        """Start as a program of its own, in a process group of its own as a terminal's command is."""
        command = [sys.executable, f"{stage}.py", *arguments]
        places = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return popen(command, cwd=self.folder, env=environment, start_new_session=True, **pipes)

    def calls(self) -> list[str]:
        """Folders in which the attribute stage has come to its end, in order."""
        file = self.folder / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    """A fresh program; the working folder is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("standin", None)
    return Program(tmp_path, capfd)
