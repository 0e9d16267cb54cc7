"""Real pairs and real verses through the commands, with models small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import TINY, metrics, only, rows

QUICK = ("metric.bootstrap=20", "metric.plots=false", "decoding.max_new_tokens=4")


@pytest.mark.long
def test_lima_through_all_three_commands(commands, shared_data):
    """A tiny OLMo of random weights on real pairs; paraphrases come from a file."""
    pairs = shared_data / "lima" / "lima_988.jsonl"
    texts = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()[:12]]
    own = [{**row, "prompt": f"In other words: {row['prompt']}"} for row in texts]
    Path("paraphrases.jsonl").write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    data = ("model=tiny_olmo", "dataset=lima", f"dataset.path={pairs}", "dataset.limit=12", "trainer.fit.steps=0")
    queries = "dataset.paraphrases=paraphrases.jsonl"
    commands.done("train", *data, queries)
    commands.done("attribute", *data, queries, *QUICK, "method=select", "budget=0.05")
    commands.done("attribute", *data, queries, *QUICK, "method=project")
    commands.done("evaluate", *data[:4], queries, *QUICK[:2])
    found = metrics(only("outputs/evaluate/*"))
    assert found["select (accuracy, 5 %)/paraphrased/queries"] == 12
    assert found["select (accuracy, 5 %)/paraphrased/bm25_accuracy"] == 1


@pytest.mark.long
def test_verses(commands, shared_data):
    """Trained on one translation, asked in another one."""
    path = shared_data / "verses" / "verses.tsv"
    own = [text for text in TINY if not text.startswith("dataset.")]
    err = commands.done("attribute", "experiment=verses", f"dataset.path={path}", "dataset.limit=40", *own, *QUICK[1:])
    assert "training:" in err
    found = metrics(only("outputs/attribute/*"))
    assert found["paraphrased/queries"] == found["generated/queries"] == 40
    assert found["paraphrased/bm25_accuracy"] > 0.5 > found["paraphrased/random_accuracy"]


def test_products_swept_over_a_budget(commands, shared_data):
    """The published study's products, two budgets in one sweep."""
    path = shared_data / "select_or_project" / "olmo1b_paraphrased_products.npz"
    commands.done("attribute", f"products={path}", "method=select", *QUICK[:2], "-m", "budget=0.01,0.05")
    accuracies = [float(next(v for k, v in row.items() if k.endswith("/accuracy"))) for row in rows(only("multirun/*"))]
    assert accuracies[1] >= accuracies[0] > 0.99
