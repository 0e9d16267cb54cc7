"""Classes from outside the package: the example of docs/adding-a-method.md from a folder of one's own; models, data."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, only

from tdaexp import influence
from tdaexp.runtime import own_module

QUICK = (*TINY, "metric.plots=false", "dataset.query_limit=2", "dataset.query_sets=[paraphrased]")
MODULES = ("my_methods", "my_data", "my_models")


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    before = sys.path[:]

    def forget() -> None:
        sys.path[:] = before
        for name in MODULES:
            sys.modules.pop(name, None)
            own_module._READ.pop(name, None)

    monkeypatch.setattr(sys, "path", before[:])
    forget()
    yield forget
    forget()


@pytest.fixture
def signs(repository, commands) -> str:
    """The page's method in `mine/`, its YAML beside it; returns the option."""
    page = (repository / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", page, flags=re.DOTALL))
    (told,) = re.findall(r"mine/conf/method/signs.yaml\s+(.*?)```", page, flags=re.DOTALL)
    write("mine/my_methods.py", files["src/tdaexp/methods/signs.py"])
    write("mine/conf/method/signs.yaml", "\n".join(line.strip() for line in told.splitlines()))
    return "--config-dir=mine/conf"


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


def scores(folder: str) -> np.ndarray:
    return influence.load(Path(folder) / "influence.zarr")["influence"].values


@pytest.mark.long
def test_the_pages_method_from_a_folder_of_ones_own(commands, signs):
    commands.done("attribute", *QUICK, signs, "method=signs", "method.above=0", "hydra.run.dir=first")
    found = scores("first")
    assert np.array_equal(found, np.round(found))
    store = influence.load(Path("first/influence.zarr"))
    assert (store.attrs["method"], store.attrs["label"]) == ("signs", "signs")
    code, err = commands.process(  # the jobs of a sweep, and an edit that leaves the file as long as it was
        "attribute", *QUICK, signs, "-m", "method=signs", "method.above=0,0.5", "hydra.sweep.dir=sweep"
    )
    assert code == 0, err
    np.testing.assert_array_equal(scores(str(only("sweep/0*"))), found)
    text = Path("mine/my_methods.py").read_text(encoding="utf-8")
    write("mine/my_methods.py", text.replace("return gradient.sign() * (", "return -gradient.sign() *("))
    again = (*QUICK, signs, "-m", "method=signs", "method.above=0,0.5", "hydra.sweep.dir=sweep", "resume=true")
    code, err = commands.process("attribute", *again)
    assert code == 0 and "finished before" not in err, err
    np.testing.assert_array_equal(scores(str(only("sweep/0*"))), found)  # of both signs turned round
    code, err = commands.process("attribute", *again)
    assert code == 0 and err.count("finished before") == 2, err


@pytest.mark.long
def test_two_processes_have_it(commands, signs):
    commands.done("attribute", *QUICK, signs, "method=signs", "hydra.run.dir=alone")
    together = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "cache_dir=fresh", "hydra.run.dir=two")
    code, err = commands.process("attribute", *QUICK, signs, "method=signs", *together)
    assert code == 0, err
    np.testing.assert_array_equal(scores("two"), scores("alone"))


OWN_DATA = """
from dataclasses import dataclass

from tdaexp.data.dataset import Dataset, as_query
from tdaexp.data.records import Record


@dataclass
class Rivers(Dataset):
    count: int = 6

    def train_records(self):
        return [Record(f"r{k}", f"Where does river {k} run?", f"past town {k % 3}") for k in range(self.count)]

    def own_paraphrases(self, train):
        return [as_query(record, record) for record in train]
"""
OWN_MODEL = """
from dataclasses import dataclass

from tdaexp.models.scratch import Scratch


@dataclass
class Small(Scratch):
    width: int = 16

    def __post_init__(self):
        self.config = {**self.config, "hidden_size": self.width}
        super().__post_init__()
"""


def test_own_data_and_an_own_model(commands):
    write("my_data.py", OWN_DATA)
    write("my_models.py", OWN_MODEL)
    write("conf/dataset/rivers.yaml", "_target_: my_data:Rivers\ncount: 5\nquery_sets: [paraphrased]\n")
    write("conf/model/small.yaml", "defaults: [toy_gpt]\n_target_: my_models:Small\nwidth: 24\n")
    sizes = [text for text in TINY if text.startswith(("model.", "trainer.")) and "hidden" not in text]
    commands.done(
        "attribute", *sizes, "--config-dir=conf", "model=small", "dataset=rivers", "method=dot", "metric.plots=false"
    )
    store = influence.load(only("outputs/attribute/small-rivers-dot*") / "influence.zarr")
    assert store.sizes["query"] == 5 and int(store["size"].values[0]) % 24 == 0


def test_rows_of_own_data_are_dropped(commands, as_in_a_new_process):
    write("mine/my_data.py", OWN_DATA)
    write("mine/conf/dataset/rivers.yaml", "_target_: my_data:Rivers\ncount: 5\nquery_sets: [paraphrased]\n")
    sizes = [text for text in TINY if text.startswith(("model.", "trainer."))]
    here = "--config-dir=mine/conf"
    commands.done("attribute", *sizes, here, "dataset=rivers", "method=dot", "metric.plots=false", "candidates=all")
    as_in_a_new_process()
    run = only("outputs/attribute/*rivers-dot*")
    commands.done("evaluate", here, f"runs=[{run}]", "drop=2", "drop_by=helpful")
    assert len(only("outputs/evaluate/*/train-kept.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    as_in_a_new_process()
    assert "cannot import 'my_data'" in commands.refused("evaluate", f"runs=[{run}]", "drop=2", "drop_by=helpful")


BROKEN = (
    "from dataclasses import dataclass\n\nclass Plain:\n    pass\n\n@dataclass\nclass Other:\n    above: float = 0\n"
)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere_at_all:Mine", "cannot import 'nowhere_at_all'; no such module in "),
        ("my_methods:Othr", "unknown class 'Othr'; did you mean 'Other'"),
        ("my_methods:Plain", "unknown class 'Plain'"),
        ("my_methods:Other", "is no class for 'method' (it has no 'attribute')"),
        ("my_methods.Other", "only classes of tdaexp can be named, and those of your own modules with a colon"),
        ("my_methods.py:Other", "cannot import 'my_methods.py'"),
        ("../my_methods:Other", "must be module:Class"),
        ("numpy:ndarray", "unknown class 'ndarray'"),
    ],
)
def test_what_cannot_be_a_method(commands, target, words):
    write("my_methods.py", BROKEN)
    write("conf/method/mine.yaml", f"_target_: {target}\n")
    line = commands.refused("attribute", *QUICK, "--config-dir=conf", "method=mine")
    assert words in line and "mine.yaml" in line


def test_never_below_hydra(commands):
    write("my_methods.py", "open('ran.txt', 'w')\n" + BROKEN)
    write(
        "conf/experiment/bad.yaml",
        "# @package _global_\nhydra:\n  callbacks:\n    x:\n      _target_: my_methods:Other\n",
    )
    line = commands.refused("attribute", *QUICK, "--config-dir=conf", "experiment=bad")
    assert "is refused; under hydra: only Hydra's own classes" in line and not Path("ran.txt").exists()


BOARD = """
_target_: tdaexp.app.leaderboard.board.Leaderboard
folder: board
jobs: 1
config_dir: mine/conf
paths: {far: null}
subjects:
  digits: {keys: [model=logistic, dataset=digits, dataset.train=100, dataset.test=20, dataset.query_limit=6,
                  trainer.fit.steps=10], judged: [metric=lds, metric.lds.subsets=12, metric.bootstrap=50]}
  elsewhere: {keys: [model=logistic, dataset=mnist], needs: far}
entries:
  dot: {keys: [method=dot]}
  signs: {keys: [method=signs], sweep: {method.above: [0.5]}}
  words: {keys: [method=bm25]}
  magic: {keys: [method=magic]}
"""


@pytest.mark.long
def test_the_pages_method_stands_in_the_leaderboard(commands, signs):
    """Beside ours, at its defaults and swept; what cannot be judged is marked, and nothing is done twice."""
    write("mine/conf/analysis/mine.yaml", BOARD)
    for again in range(2):
        commands.done("evaluate", signs, "analysis=mine", "logger=none", "hydra.run.dir=page")
        table, cells = (pd.read_csv(f"page/{name}.csv") for name in ("leaderboard", "cells"))
        smooth = table["metric"] == "linearity"
        said = json.loads(Path("board/digits/seed=0/magic/metrics.json").read_text(encoding="utf-8"))
        assert table[smooth][["method", "value"]].values.tolist() == [["magic", said["trust/linearity"]]]
        table = table[~smooth]
        assert set(table["method"]) == {"dot", "signs", "magic", "random"} and (table["metric"] == "lds_same").all()
        dot = table.set_index("method").loc["dot"]
        assert dot["value"] > 0.5 > dot["value"] - dot["low"] and dot["cost_seconds"] > 0
        seconds = json.loads(Path("board/digits/seed=0/dot/cost.json").read_text(encoding="utf-8"))
        assert dot["cost_seconds"] == pytest.approx(sum(seconds.values()) - seconds["model"] - seconds.get("trust", 0))
        mine = cells[cells["method"] == "signs"].dropna(subset="value")
        assert set(mine["setting"].fillna("")) == {"", "above=0.5"}
        assert table.set_index("method").loc["signs", "value"] == mine["value"].max()
        failed = cells.dropna(subset="failed").set_index(["subject", "method"])["failed"]
        assert "compares words" in failed["digits", "words"]
        assert (failed["elsewhere"] == "needs a file: analysis.paths.far=PATH").all()
        consoles = [file.read_text(encoding="utf-8") for file in Path("board").rglob("console.log")]
        assert sum("finished before" in text for text in consoles) == 4 * again
    page = Path("page/report.html").read_text(encoding="utf-8")
    assert "digits: words" in page and "Leaderboard" in page


def test_a_leaderboard_of_nothing_is_refused(commands):
    write("mine/conf/analysis/mine.yaml", BOARD.replace("keys: [method=dot]", "keys: [method=dot], only: [digit]"))
    line = commands.refused("evaluate", "--config-dir=mine/conf", "analysis=mine")
    assert "analysis.entries.dot.only: there is no subject 'digit'" in line
    write("mine/conf/analysis/mine.yaml", BOARD.replace("sweep: {method.above: [0.5]}", "sweeps: {}"))
    line = commands.refused("evaluate", "--config-dir=mine/conf", "analysis=mine")
    assert "in 'analysis.entries.signs': unknown key 'sweeps'; did you mean 'sweep'?" in line
