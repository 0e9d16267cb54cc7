"""Mirrors of a run: what wandb's offline files hold, one run per job, ended whatever happens; and log.csv."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from wandb_file import items_of, of_kind, records

from tdaexp.app.config import Logger
from tdaexp.report.loggers import RunLogger, open_logger
from tdaexp.report.mirrored import read_mirrored
from tdaexp.runtime.fingerprint import git_commit

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import socket, sys
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from tdaexp.app.config import Logger
from tdaexp.report.mirrored import read_mirrored
from tdaexp.report.loggers import open_logger

def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"network used: {address}")
    return connect(self, address)

connect = socket.socket.connect
socket.socket.connect = refuse
top = Path(sys.argv[1])
fails = {"second": ZeroDivisionError, "third": KeyboardInterrupt}
for name in ("first", "second", "third"):
    try:
        with open_logger(
            Logger(tags=["a"]),
            folder=top / name,
            config={"seed": 3, "model": {"width": 8}},
            group="sweep-1",
            name=name,
        ) as logger:
            for step in (0, 1, 2):
                logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
            if name in fails:
                raise fails[name]("stop")
            logger.log_metrics({"paraphrased/accuracy": 0.75})
            figure, axes = plt.subplots()
            figure.savefig(top / "plot.png")
            logger.log_images({"plots/accuracy": top / "plot.png"})
            logger.log_table("top_texts", pd.DataFrame({"query": ["q"], "text": ["a source"]}))
    except (ZeroDivisionError, KeyboardInterrupt):
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wandb")


@pytest.fixture(scope="module")
def mirrored(folder):
    """Three wandb runs in one process: one done, one failed, one interrupted."""
    home = folder / "home"
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home / "tmp")}
    for name in [name for name in environment if name.startswith(("WANDB_", "XDG_"))]:
        del environment[name]
    (home / "tmp").mkdir(parents=True)
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip() and not done.stderr.strip()  # the console stays ours
    files = {name: list((folder / name).glob("wandb/offline-run-*/*.wandb")) for name in ("first", "second", "third")}
    assert all(len(found) == 1 for found in files.values())
    assert not list(home.rglob("*wandb*"))  # neither the texts nor anything else leaves the run's folder
    assert list(folder.glob("first/wandb/data/artifacts/staging/*"))
    return {name: records(found[0]) for name, found in files.items()}


def test_jobs_in_one_process_are_runs_of_one_group(mirrored):
    runs = {name: of_kind(found, "run")[0] for name, found in mirrored.items()}
    assert len({run.run_id for run in runs.values()}) == 3
    assert {run.run_group for run in runs.values()} == {"sweep-1"}
    assert {name: run.display_name for name, run in runs.items()} == {name: name for name in runs}
    assert {run.project for run in runs.values()} == {"tdaexp"}
    assert list(runs["first"].tags) == ["a"]


def test_a_run_holds_configuration_commit_and_numbers(mirrored):
    found = mirrored["first"]
    config = items_of(of_kind(found, "run")[0].config.update)
    assert (config["seed"], config["model"], config["git_commit"]) == (3, {"width": 8}, git_commit())
    curve = [row for history in of_kind(found, "history") if "train/loss" in (row := items_of(history.item))]
    assert [(row["step"], row["train/loss"]) for row in curve] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    last: dict = {}
    for summary in of_kind(found, "summary"):
        last |= items_of(summary.update)
    assert last["paraphrased/accuracy"] == 0.75
    media: dict = {}
    for history in of_kind(found, "history"):
        media |= items_of(history.item)
    assert media["plots/accuracy/_type"] == "image-file"
    assert (media["top_texts/_type"], media["top_texts/nrows"], media["top_texts/ncols"]) == (
        "table-file",
        1,
        2,
    )


def test_beside_a_run_lies_what_wandb_was_told_of_it(mirrored, folder):
    """Dashboards are made of that file, so it may name nothing else."""
    told, found = read_mirrored(folder / "first"), mirrored["first"]
    (run,) = of_kind(found, "run")
    assert (told.id, told.project, told.name, told.group) == (run.run_id, "tdaexp", "first", "sweep-1")
    assert told.config == {key: value for key, value in items_of(run.config.update).items() if key != "_wandb"}
    assert (told.metrics, told.tables, told.images) == (
        {"paraphrased/accuracy": 0.75},
        ["top_texts"],
        ["plots/accuracy"],
    )
    assert told.offline and read_mirrored(folder / "second") is None and read_mirrored(folder / "third") is None


def test_every_run_is_ended_with_its_exit_code(mirrored):
    codes = {name: [end.exit_code for end in of_kind(found, "exit")] for name, found in mirrored.items()}
    assert codes == {"first": [0], "second": [1], "third": [130]}


def test_csv_keeps_numbers_and_tables(tmp_path):
    with open_logger(Logger(kind="csv"), folder=tmp_path / "run", config={}, group=None, name="n") as logger:
        logger.log_metrics({"loss": 0.5}, step=3)
        logger.log_metrics({"accuracy": 1.0})
        logger.log_images({"plot": tmp_path / "none.png"})
        logger.log_table("top", pd.DataFrame({"query": ["q"], "score": [0.25]}))
    rows = list(csv.reader((tmp_path / "run" / "log.csv").read_text().splitlines()))
    assert rows == [["step", "name", "value"], ["3", "loss", "0.5"], ["", "accuracy", "1.0"]]
    assert (tmp_path / "run" / "tables" / "top.csv").read_text() == "query,score\nq,0.25\n"


def test_none_writes_nothing(tmp_path):
    with open_logger(Logger(kind="none"), folder=tmp_path / "run", config={}, group=None, name="n") as logger:
        logger.log_metrics({"accuracy": 1.0})
    assert type(logger) is RunLogger and not (tmp_path / "run").exists()
