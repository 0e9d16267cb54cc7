"""Methods that score pairs, on a classification task, from the command line to the table."""

from __future__ import annotations

import numpy as np
import pytest
from commands import metrics, only, rows

from tdaexp import influence

TASK = ("model=mnist_cnn", "dataset=digits", "model.padding=1", "model.channels=[4,6]", "model.hidden=16",
        "dataset.train=200", "dataset.test=30", "trainer.fit.batch_size=50", "trainer.fit.steps=40",
        "metric.bootstrap=50", "metric.plots=false")  # fmt: skip


@pytest.mark.long
def test_scores_of_a_classifier_are_ranked_in_one_table(commands):
    names = ("ekfac", "dot", "full", "select", "random")
    commands.done("attribute", *TASK, "-m", f"method={','.join(names)}", "hydra.sweep.dir=sweep")
    table = rows(only("sweep/sweep.csv").parent)
    assert [row["status"] for row in table] == ["done"] * len(names)
    accuracy = dict(zip(names, [float(row["test/accuracy"]) for row in table], strict=True))
    chance = float(table[0]["test/random_accuracy"])
    assert 0.08 < chance < 0.12 and accuracy["random"] < 0.4 < 0.6 < accuracy["ekfac"]
    store = influence.load(only("sweep/0-*") / "influence.zarr")
    assert dict(store["influence"].sizes) == {"query": 30, "candidate": 200, "component": 4}
    assert store["component"].values.tolist() == ["conv1", "conv2", "fc1", "fc2"]
    page = (only("sweep/0-*") / "report.html").read_text(encoding="utf-8")
    assert ": class 3" in page
    err = commands.done("evaluate", "runs=[sweep]", "metric.reference=ekfac", "metric.bootstrap=50")
    assert "left out" not in err
    found = metrics(only("outputs/evaluate/*"))
    assert found["ekfac/test/rank_correlation"] == pytest.approx(1)
    assert found["dot/test/rank_correlation_low"] > 0.1 > abs(found["random/test/rank_correlation"])


@pytest.mark.long
def test_a_decomposition_is_no_ranking(commands):
    commands.done("attribute", *TASK, "method=explaind", "trainer.fit.steps=3", "hydra.run.dir=explained")
    assert "decomposes a training and scores no pairs" in commands.refused("evaluate", "runs=[explained]")
    commands.done("attribute", *TASK, "method=random", "trainer.fit.steps=3", "hydra.run.dir=scored")
    err = commands.done("evaluate", "runs=[explained,scored]", "metric.bootstrap=50")
    assert "explained/influence.zarr: left out" in err


def test_a_sample_of_candidates(commands):
    sample = ("candidates=sample", "candidates.b=20", "candidates.seed=3")
    commands.done("attribute", *TASK, "method=random", *sample, "dataset.query_sets=[test,train]",
                  "dataset.query_limit=6", "hydra.run.dir=run")  # fmt: skip
    store = influence.load(only("run") / "influence.zarr")
    train = store["train"].values
    assert train.shape == (12, 20) and len(set(train[0])) == 20 and (train == train[0]).all()
    assert list(dict.fromkeys(store["query_set"].values)) == ["test", "train"]
    line = commands.refused("attribute", *TASK, "method=random", "candidates=knn")
    assert "candidates=knn: reads texts" in line


def test_double_precision_and_another_network(commands):
    small = ("model=grokking", "dataset=modular_addition", "dataset.train=60", "dataset.test=20", "model.hidden=8",
             "model.inner=16", "trainer.fit.steps=6", "metric.bootstrap=50", "metric.plots=false")  # fmt: skip
    err = commands.done("attribute", *small, "method=ekfac", "trainer.precision=float64", "hydra.run.dir=run")
    assert "left out by choice: embed (" in err and "lm_head (" in err
    store = influence.load(only("run") / "influence.zarr")
    assert store["influence"].dtype == np.float64 and np.isfinite(store["influence"].values).all()
