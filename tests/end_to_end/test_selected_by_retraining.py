"""Selection by retraining, by command: a bank that is not there, one that is, and the study of what was chosen."""

from __future__ import annotations

from commands import metrics

from tdaexp import influence
from tdaexp.training import bank

TASK = ["model=mlp", "dataset=digits", "dataset.train=60", "dataset.test=40", "dataset.query_limit=8", "candidates=all",
        "trainer.fit.steps=8", "metric.bootstrap=50"]  # fmt: skip
SELECT = [*TASK, "method=select", "method.objective=lds", "method.subsets=8", "method.left_out=0.1", "budget=0.5"]
"""Of a classifier no source is known: it is chosen by retraining, and nothing is said of retrieval."""


def test_a_bank_is_asked_for_and_read(commands, tmp_path, monkeypatch):
    commands.done("attribute", *TASK, "method=dot", "hydra.run.dir=plain")
    line = commands.refused("attribute", *SELECT, "hydra.run.dir=early")
    assert "9 of 9 models trained again are not in the bank; make them" in line
    assert "evaluate.py metric=lds metric.lds.subsets=8 metric.lds.left_out=0.1 runs=[FOLDER]" in line
    judged = ["metric=lds", "metric.lds.subsets=8", "metric.lds.left_out=0.1", "metric.bootstrap=50"]
    commands.done("evaluate", *judged, "runs=[plain]", "hydra.run.dir=judged")
    monkeypatch.setattr(bank.Bank, "_write", None)  # what is there is only read
    commands.done("attribute", *SELECT, "hydra.run.dir=chosen")
    store = influence.load(tmp_path / "chosen" / "influence.zarr")
    assert store["retrained"].shape == (8, 8) and store["member"].shape == (8, 60)
    assert (store["member"].sum("row") == 54).all() and store.attrs["objective"] == "lds"
    assert 0 < float(store["weight"].sum()) < store.sizes["component"]
    assert store.attrs["label"] == "select (lds, 50 %)"
    commands.done("evaluate", *judged, "runs=[plain,chosen]", "hydra.run.dir=both")
    assert any("lds" in name for name in metrics(tmp_path / "both"))


def test_too_few_subsets_are_refused(commands):
    assert "at least 3" in commands.refused("attribute", *SELECT, "method.subsets=2")
