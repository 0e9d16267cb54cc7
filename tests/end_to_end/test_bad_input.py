"""Bad input ends in one line that says what, where and what to do, and in exit code 2."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import REPOSITORY, TINY, only
from nursery import popen

from tdaexp import influence

TEXT = ("dataset=text", "dataset.path=own.jsonl", "dataset.prompt_column=ask", "dataset.completion_column=answer")
OWN = [text for text in TINY if not text.startswith("dataset.")]
ROWS = [{"ask": f"Who wrote book {k}?", "answer": f"Author number {k} did."} for k in range(8)]
QUERIES = [{"ask": f"Book {k} was written by whom?", "answer": f"By author {k}.", "source": str(k)} for k in range(8)]


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def refused(commands, *arguments: str) -> str:
    return commands.refused("attribute", *TEXT, *OWN, *arguments)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([], ["own.jsonl", "holds no record"]),
        ([ROWS[0], {"ask": "Who?"}], ["own.jsonl", "answer", "2"]),
    ],
)
def test_data_files(commands, rows, parts):
    write("own.jsonl", rows)
    err = refused(commands)
    assert all(part in err for part in parts), err


def test_a_missing_data_file(commands):
    assert "own.jsonl" in refused(commands)


def test_queries_of_other_training_examples(commands):
    write("own.jsonl", ROWS)
    write("queries.jsonl", [{**QUERIES[0], "source": "99"}])
    err = refused(commands, "dataset.query_path=queries.jsonl", "dataset.truth_column=source")
    assert "99" in err and "queries.jsonl" in err


def test_texts_longer_than_the_context_are_cut_and_counted(commands):
    write("own.jsonl", [{**row, "answer": row["answer"] * 5} for row in ROWS])
    write("queries.jsonl", QUERIES)
    queries = ("dataset.query_path=queries.jsonl", "dataset.truth_column=source", "dataset.query_sets=[paraphrased]")
    cut = ("dataset.max_length=24", "method=full", "metric.plots=false")
    err = commands.done("attribute", *TEXT, *OWN, *queries, *cut)
    assert "cut" in err or "truncated" in err


@pytest.mark.parametrize("budget", ["0", "-0.1", "1.5", "0.0001", "lots"])
def test_budgets(commands, budget):
    assert "budget" in commands.refused("attribute", *TINY, f"budget={budget}")


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("dataset.query_sets=[]", "name at least one"),
        ("dataset.template=chta", "did you mean 'chat'"),
        ("dataset.template='{prompt}'", "needs {completion} once"),
        ("method.on.reduction=max", "unknown reduction 'max'"),
        ("method.selection=none.txt", "cannot be read"),
    ],
)
def test_what_needs_only_the_configuration_is_checked_before_the_run(commands, option, part):
    err = commands.refused("attribute", *TINY, option)
    assert part in err and option.split("=")[0].replace(".on", "") in err
    assert not Path("outputs").exists()


def test_an_unknown_component_in_a_selection(commands):
    err = commands.refused("attribute", *TINY, "method=full", "method.components=[layers.0.attn.k, layers.0.atn.q]")
    assert "layers.0.atn.q" in err and "did you mean 'layers.0.attn.q'" in err


def test_a_damaged_store(commands):
    commands.done("attribute", *TINY, "method=full", "metric.plots=false")
    store = only("outputs/attribute/*/influence.zarr")
    (store / "influence" / "0.0.0").unlink()
    assert str(store) in commands.refused("evaluate", f"runs=[{store}]")


def test_a_store_of_an_older_version(commands):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence, "FORMAT_VERSION", 0)
        store = influence.build(
            np.zeros((1, 2)),
            query=["q"],
            query_set=["s"],
            train=np.array([["a", "b"]]),
            truth=np.array([[True, False]]),
        )
        influence.save(store, Path("old/influence.zarr"))
    err = commands.refused("evaluate", "runs=[old/influence.zarr]")
    assert "written in format 0" in err and "run attribute.py again" in err


def test_stored_products(commands, tmp_path):
    good = {
        "dot": np.ones((3, 2, 2)),
        "query_sq": np.ones((3, 2)),
        "train_sq": np.ones((3, 2, 2)),
        "target": np.array([0, 1, 0]),
        "component": np.array(["a", "b"]),
        "size": np.array([4, 6]),
        "query": np.array(["x", "y", "z"]),
    }
    bad = {
        "train_sq": {key: value for key, value in good.items() if key != "train_sq"},
        "query_sq": {**good, "query_sq": np.ones((3, 5))},
        "negative": {**good, "train_sq": -good["train_sq"]},
    }
    for said, arrays in bad.items():
        np.savez("products.npz", **arrays)
        err = commands.refused("attribute", "products=products.npz", "method=full", "metric.plots=false")
        assert said in err and "products.npz" in err
    np.savez("products.npz", **good)
    commands.done("attribute", "products=products.npz", "method=full", "metric.plots=false", "metric.folds=3")
    refused = commands.refused("evaluate", "runs=[outputs/attribute/*]", "drop=1")
    assert "config.yaml: names no data set whose rows could be dropped" in refused


def test_scores_of_another_program(commands):
    commands.done("attribute", *TINY, "method=random", "metric.plots=false")
    store = influence.dense(influence.load(only("outputs/attribute/*/influence.zarr")))
    np.save("small.npy", np.zeros((2, 3)))
    subject = [text for text in TINY if text.startswith(("model.", "dataset."))]
    assert "small.npy" in commands.refused("evaluate", *subject, "scores=small.npy")
    query = str(store["query"].values[0])
    Path("some.json").write_text(json.dumps({query: {str(store["train"].values[0]): 1.0}}), encoding="utf-8")
    assert "some.json" in commands.refused("evaluate", *subject, "scores=some.json")


@pytest.mark.long
def test_no_space_left(commands, tmp_path):
    """A file that may not grow stands for a full disk; what was stored before is kept, and the next run goes on."""
    arguments = commands.arguments([*TINY, "method=full", "metric.plots=false"])
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY));"
        "from pathlib import Path; from tdaexp.app import main;"
        f"sys.exit(main('attribute', Path({str(REPOSITORY / 'conf')!r}), ['attribute.py', *sys.argv[1:]]))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    program = popen([sys.executable, "-c", script, *arguments], **pipes)
    line = commands.one_line(program.wait(timeout=300), program.communicate()[1], expected=1)
    assert "disk" in line or "space" in line or "written" in line
    assert not list(tmp_path.rglob("*.part"))
    commands.done("attribute", *TINY, "method=full", "metric.plots=false")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    shutil.rmtree("outputs")
