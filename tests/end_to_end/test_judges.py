"""Metrics that train models again, step once more or look for known faults: from the commands to one page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from commands import TINY, metrics, only

from tdaexp import influence
from tdaexp.report.retrained_words import TITLES

TASK = ("model=logistic", "dataset=digits", "dataset.train=120", "dataset.test=20", "dataset.query_limit=5",
        "dataset.query_sets=[test,train]", "dataset.flipped=0.1", "dataset.repeated=0.1", "trainer.fit.batch_size=40",
        "trainer.fit.steps=12", "trainer.fit.lr=0.5", "metric.plots=false", "metric.bootstrap=50")  # fmt: skip
EVERY = "lds,leave_one_out,removal,brittleness,tail_patch,mislabelled,duplicates"
FEW = ("metric.bootstrap=50", "metric.lds.subsets=20", "metric.leave_one_out.examples=20", "metric.removal.queries=2",
       "metric.removal.random=2", "metric.brittleness.queries=2", "metric.brittleness.random=1",
       "metric.brittleness.shares=[0.02,0.05]", "metric.tail_patch.queries=3")  # fmt: skip
LDS = ("metric=lds", "metric.bootstrap=50", "metric.lds.subsets=20")


@pytest.mark.long
def test_every_metric_of_two_methods(commands):
    for method in ("dot", "ekfac"):
        commands.done("attribute", *TASK, f"method={method}", "self_influence=true", f"hydra.run.dir=runs/{method}")
    err = commands.done("evaluate", f"metric=[retrieval,{EVERY}]", *FEW, "runs=[runs]", "hydra.run.dir=page")
    assert "lds, same start: 20 models are trained again, 12 steps each; 0 are there" in err
    found = metrics(only("page"))
    of_queries = ("lds_same", "leave_one_out_same", "removal_same", "brittleness_same", "flipped_same", "tail_patch")
    for method in ("dot", "ekfac", "random"):
        for name in ("test", "train"):
            for metric in of_queries:
                assert f"{method}/{name}/{metric}_low" in found, (method, name, metric)
        assert f"{method}/train/duplicate_found" in found and f"{method}/test/duplicates_apart" in found
        assert f"{method}/train/mislabelled_auc_high" in found
    for method in ("dot", "ekfac"):
        assert found[f"{method}/test/duplicates_apart"] < 1e-5 < 0.5 < found["random/test/duplicates_apart"]
        assert found[f"{method}/train/mislabelled_auc"] > 0.8 > found["random/train/mislabelled_auc"]
        assert found[f"{method}/test/tail_patch"] > found["random/test/tail_patch"]
    assert found["ekfac/test/lds_same"] > 0.3 and found["loss of the row/train/mislabelled_auc"] > 0.8
    page = only("page/report.html").read_text(encoding="utf-8")
    for metric in (*of_queries, "mislabelled_auc", "mislabelled_found", "duplicate_found", "duplicates_apart"):
        assert TITLES[metric] in page
    again = commands.done("evaluate", f"metric=[retrieval,{EVERY}]", *FEW, "runs=[runs]", "hydra.run.dir=again")
    assert "are trained again" not in again
    assert only("again/retrained.csv").read_bytes() == only("page/retrained.csv").read_bytes()


@pytest.mark.long
def test_two_processes_share_the_trainings(commands, tmp_path):
    commands.done("attribute", *TASK, "method=dot", f"cache_dir={tmp_path}/one", "hydra.run.dir=run")
    one = (*LDS, "runs=[run]", f"cache_dir={tmp_path}/one", "hydra.run.dir=one-page")
    two = (
        *LDS,
        "runs=[run]",
        f"cache_dir={tmp_path}/two",
        "hydra.run.dir=two-page",
        "trainer=ddp",
        "trainer.devices=2",
    )
    commands.done("evaluate", *one)
    code, err = commands.process("evaluate", *two)
    assert code == 0 and "2 processes" in err, err
    found, wanted = (pd.read_csv(only(f"{name}-page/retrained.csv")) for name in ("two", "one"))
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_what_cannot_be_judged_is_one_line(commands):
    commands.done("attribute", *TASK, "method=dot", "candidates=sample", "candidates.b=20", "hydra.run.dir=some")
    line = commands.refused("evaluate", *LDS, "runs=[some]")
    assert "'dot': influence store: 100 training examples have no score" in line and "candidates=all" in line
    commands.done("evaluate", "metric=[tail_patch,duplicates]", "metric.tail_patch.queries=2", "runs=[some]")
    assert "no run has self-influence" in commands.refused("evaluate", "metric=mislabelled", "runs=[some]")
    plain = [one for one in TASK if not one.startswith(("dataset.flipped", "dataset.repeated", "dataset.query_sets"))]
    commands.done("attribute", *plain, "method=dot", "self_influence=true", "hydra.run.dir=plain")
    assert "no training row is known to be faulty" in commands.refused("evaluate", "metric=mislabelled", "runs=[plain]")
    assert "no query repeats a training row" in commands.refused("evaluate", "metric=duplicates", "runs=[plain]")
    assert "of 2 models or data sets" in commands.refused("evaluate", *LDS, "runs=[some,plain]")
    wide = ("metric=removal", "metric.removal.share=0.9", "runs=[plain]")
    assert "leaves no example of class" in commands.refused("evaluate", *wide)
    line = commands.refused("evaluate", *LDS, "runs=[plain]", "trainer=fsdp", "trainer.devices=2")
    assert "evaluate reads what is stored, in one process" in line and "trainer=ddp shares out" in line
    err = commands.done("evaluate", "metric=lds", "metric.lds.subsets=3", "metric.bootstrap=5", "runs=[plain]")
    assert "metric.lds.subsets=3: fewer than 20 tell little" in err


@pytest.mark.long
def test_scores_that_are_called_random_stand_for_themselves(commands):
    commands.done("attribute", *TASK, "method=dot", "hydra.run.dir=run")
    np.save("random.npy", influence.dense(influence.load(only("run/influence.zarr"))).values)
    few = ("metric=lds", "metric.lds.subsets=3", "metric.bootstrap=5", "metric.plots=false")
    commands.done("evaluate", *few, "runs=[run]", "scores=random.npy", "hydra.run.dir=page")
    found = metrics(only("page"))
    assert found["random/test/lds_same"] == found["dot/test/lds_same"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["metric=lds", "metric.lds.subsets=2"], "at least 3"),
        (["metric=lds", "metric.lds.left_out=1"], "metric.lds.left_out=1: must be a share between 0 and 1"),
        (["metric=leave_one_out", "metric.leave_one_out.examples=1"], "at least 3"),
        (["metric=removal", "metric.removal.random=1"], "metric.removal.random=1: must be at least 2"),
        (["metric=brittleness", "metric.brittleness.shares=[0.1,0.05]"], "must be shares that rise"),
        (["metric=keeping", "metric.keeping.share=1.5"], "metric.keeping.share=1.5: must be a share between 0 and 1"),
        (["metric=tail_patch", "metric.tail_patch.rate=0"], "must be a positive number"),
        (["metric=mislabelled", "metric.mislabelled.looked_at=0"], "must be a share between 0 and 1"),
        (["metric=duplicates", "metric.duplicates.pairs=0"], "must be at least 1"),
        (["metric=removals"], "removal"),
        (["metric=removal", "metric.removal.shre=0.1"], "did you mean 'share'"),
    ],
)
def test_mistakes_are_one_line(commands, arguments, message):
    assert message in commands.refused("evaluate", *arguments)


@pytest.mark.long
def test_a_language_model(commands):
    """Tampered rows, removal and tail-patch of texts; brittleness of a model that answers nothing is one line."""
    small = [*TINY[:5], "dataset=instructions", "dataset.rows=40", "dataset.tampered=0.2", "dataset.queries=3",
             "trainer.fit.batch_size=8", "trainer.fit.steps=10", "metric.plots=false", "candidates=all"]  # fmt: skip
    commands.done("attribute", *small, "metric.bootstrap=20", "method=dot", "self_influence=true", "hydra.run.dir=run")
    few = ("metric.removal.queries=1", "metric.removal.random=2", "metric.bootstrap=20", "metric.tail_patch.random=3")
    commands.done("evaluate", "metric=[removal,tail_patch,mislabelled]", *few, "runs=[run]", "hydra.run.dir=page")
    found = metrics(only("page"))
    assert "dot/triggered/removal_same" in found
    assert found["dot/triggered/tail_patch"] > found["random/triggered/tail_patch"]
    assert 0 <= found["dot/train/mislabelled_auc"] <= 1
    assert "the model answers 0 rightly" in commands.refused("evaluate", "metric=brittleness", "runs=[run]")
