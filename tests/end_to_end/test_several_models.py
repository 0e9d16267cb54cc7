"""Runs of several seeds, changed files and half-finished runs: nothing is mixed up in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, metrics, only
from safetensors.torch import load_file, save_file

SUBJECT = [text for text in TINY if text.startswith(("model.", "dataset."))]
QUICK = ("metric.plots=false", "metric.bootstrap=20")


@pytest.mark.long
def test_evaluate_takes_one_model_unless_told_otherwise(commands):
    commands.done("attribute", *TINY, *QUICK, "method=full,bm25", "-m", "seed=0,1")
    err = commands.done("evaluate", *SUBJECT, *QUICK)
    assert "left out 2 runs of another model" in err
    assert {key.split("/")[0] for key in metrics(only("outputs/evaluate/*"))} == {"full", "bm25"}
    both = only("multirun/*")
    commands.done("evaluate", *SUBJECT, *QUICK, f"runs=[{both}]", "hydra.run.dir=both")
    found = metrics(Path("both"))
    assert {key.split("/")[0] for key in found} == {f"{m} [seed={s}]" for m in ("full", "bm25") for s in (0, 1)}
    for seed in (0, 1):
        assert found[f"full [seed={seed}]/generated/fidelity"] == pytest.approx(1)


def test_a_changed_file_is_another_job(commands):
    rows = [
        {"ask": f"Who wrote book {k}?", "answer": f"Author {k} did.", "again": f"Book {k} is whose?"} for k in range(6)
    ]
    columns = (
        "dataset.prompt_column=ask",
        "dataset.completion_column=answer",
        "dataset.paraphrase_prompt_column=again",
        "dataset.paraphrase_completion_column=answer",
    )
    own = [text for text in TINY if not text.startswith("dataset.")]
    arguments = ("dataset=text", "dataset.path=own.jsonl", *columns, *own, *QUICK, "method=bm25", "resume=true")
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    paraphrased = "dataset.query_sets=[paraphrased]"
    commands.done("attribute", *arguments, paraphrased)
    assert "finished before, skipped" in commands.done("attribute", *arguments, paraphrased)
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows[:4])), encoding="utf-8")
    assert "finished before, skipped" not in commands.done("attribute", *arguments, paraphrased)


def test_training_from_a_folder_starts_there(commands, tmp_path):
    fit = [text for text in TINY if not text.startswith(("decoding", "metric"))]
    said = commands.done("train", *fit, "hydra.run.dir=first")
    folder = tmp_path / "own"
    shutil.copytree(said.split("checkpoint: ")[1].split("\n")[0], folder)
    (folder / "checksums.json").unlink()  # as its refusal says to somebody who edits weights
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 0.5 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    commands.done("train", *fit, "hydra.run.dir=second")
    commands.done("train", *fit, f"model.pretrained={folder}", "hydra.run.dir=third")
    losses = [metrics(Path(name))["train/loss"] for name in ("first", "second", "third")]
    assert losses[0] == losses[1] != losses[2]


def test_precision_reaches_the_training(commands):
    fit = [text for text in TINY if not text.startswith(("decoding", "metric"))]
    for precision in ("float32", "bfloat16"):
        commands.done("train", *fit, f"trainer.precision={precision}", f"hydra.run.dir={precision}")
    assert metrics(Path("float32"))["train/loss"] != metrics(Path("bfloat16"))["train/loss"]


def test_runs_that_are_not_done_are_left_out_with_a_line(commands):
    commands.done("attribute", *TINY, *QUICK, "method=random", "hydra.run.dir=runs/one")
    commands.done("attribute", *TINY, *QUICK, "method=bm25", "hydra.run.dir=runs/two")
    row = Path("runs/two/row.json")
    row.write_text(row.read_text().replace('"done"', '"failed"'))
    err = commands.done("evaluate", *QUICK, "runs=[runs]")
    page = only("outputs/evaluate/*/report.html").read_text(encoding="utf-8")
    assert "Partial: 1 job has no result yet" in err and "<li>method=bm25: failed</li>" in page
    assert "accuracy" in {key.split("/")[1] for key in metrics(only("outputs/evaluate/*"))}


def test_a_selection_from_a_file_has_no_budget(commands):
    Path("mine.txt").write_text("embed\n", encoding="utf-8")
    err = commands.refused("attribute", *TINY, "method.selection=mine.txt", "budget=0.1")
    assert "method.selection names the components" in err
    commands.done("attribute", *TINY, *QUICK, "method.selection=mine.txt")
    store = only("outputs/attribute/*")
    assert np.isclose(metrics(store)["paraphrased/share"], 5120 / 9472, atol=0.2)


def test_one_query_per_set_is_judged_without_held_out_numbers(commands, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        "one.npz",
        dot=rng.normal(size=(1, 3, 2)),
        query_sq=np.ones((1, 2)),
        train_sq=np.ones((1, 3, 2)),
        target=np.array([0]),
        component=np.array(["a", "b"]),
        size=np.array([4, 6]),
        query=np.array(["x"]),
    )
    commands.done(
        "attribute", "products=one.npz", "query_set=paraphrased", "method=select", "budget=0.5", "metric.bootstrap=20"
    )
    found = metrics(only("outputs/attribute/*"))
    assert found["paraphrased/queries"] == 1 and "paraphrased/heldout_accuracy" not in found
