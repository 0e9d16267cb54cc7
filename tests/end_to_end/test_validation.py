"""Pruning and sub-sampling on a small task: to a page, and on after an interruption."""

from __future__ import annotations

import pandas as pd
import pytest
from commands import metrics

from tdaexp.papers import pruned_network

TASK = ["model=mnist_cnn", "dataset=digits", "model.padding=1", "model.channels=[2,3]", "model.hidden=8",
        "dataset.train=120", "dataset.test=30", "dataset.query_limit=10", "trainer.fit.batch_size=40",
        "trainer.fit.steps=6", "metric.bootstrap=100"]  # fmt: skip
PRUNING = [*TASK, "analysis=explaind_fig2", "analysis.seeds=2", "analysis.sparsities=[0.5,0.9]", "analysis.queries=8"]


def interrupted(monkeypatch, place, after: int) -> list[int]:
    """Let training again fail after so many times; returns a list that grows with each."""
    calls, plain = [], place.retrain

    def retrain(*arguments):
        if len(calls) == after:
            raise OSError("the machine went away")
        calls.append(1)
        return plain(*arguments)

    monkeypatch.setattr(place, "retrain", retrain)
    return calls


@pytest.mark.long
def test_pruning_goes_on_where_it_was_interrupted(commands, tmp_path, monkeypatch):
    commands.done("evaluate", *PRUNING, f"cache_dir={tmp_path}/straight", "hydra.run.dir=straight")
    of_a_seed = 2 * 3 * 2  # units, rankings, levels
    for after, expected in ((of_a_seed + 5, of_a_seed + 5), (100, of_a_seed)):
        calls = interrupted(monkeypatch, pruned_network, after)
        commands("evaluate", *PRUNING, f"cache_dir={tmp_path}/cut", "hydra.run.dir=cut")
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert len(calls) == expected
    assert (tmp_path / "cut" / "pruning.csv").read_bytes() == (tmp_path / "straight" / "pruning.csv").read_bytes()
    table = pd.read_csv(tmp_path / "cut" / "pruning.csv")
    assert len(table) == 2 * 3 * 2 * 2
    single = table[table["unit"] == "parameter"]
    prunable = 2 * 9 + 2 + 3 * 2 * 9 + 3 + 8 * 3 * 2 * 2 + 8  # two convolutions and the first linear layer
    assert (abs(single["sparsity"] - single["level"]) * prunable < 0.5 + 1e-9).all()


@pytest.mark.long
def test_subsampling(commands, tmp_path):
    commands.done("attribute", *TASK, "method=explaind", "method.keep=[step,query,output]")
    arguments = [*TASK, "analysis=explaind_subsampling", "analysis.held_out=20", "runs=[outputs/attribute]"]
    commands.done("evaluate", *arguments, "analysis.shares=[0.5,1]", "hydra.run.dir=run")
    table = pd.read_csv(tmp_path / "run" / "subsampling.csv")
    whole = table[table["share"] == 1]
    assert (whole["steps"] == 6).all()
    assert whole["missing"].tolist() == pytest.approx([whole["missing"].iloc[0]] * 3, rel=1e-12)  # a mean of draws
    assert (table[table["share"] == 0.5]["steps"] == 3).all()
    assert metrics(tmp_path / "run")["subsampling/uniform/0.5/agreement"] <= 1
    message = commands.refused("evaluate", *arguments, "analysis.held_out=21", "hydra.run.dir=overlap")
    assert "dataset.query_limit to at most 9 of 30" in message
    other = commands.refused("evaluate", *arguments, "dataset.query_limit=5", "hydra.run.dir=other")
    assert "another training or other queries" in other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analysis=explaind_fig2", "analysis.sparsities=[0.9,0.5]"], "must rise"),
        (["analysis=explaind_fig2", "analysis.rankings=[size]"], "analysis.rankings: unknown value 'size'"),
        (["analysis=explaind_subsampling", "analysis.shares=[0]"], "above 0 and at most 1"),
    ],
)
def test_mistakes_are_one_line(commands, arguments, message):
    assert message in commands.refused("evaluate", *TASK, *arguments)
