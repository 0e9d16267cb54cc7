"""The grokking study through the commands, on a training of a few steps."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from commands import metrics, only

TINY = ["model.hidden=8", "model.inner=16", "dataset.modulus=11", "dataset.train=40", "dataset.test=20",
        "trainer.fit.steps=12", "trainer.fit.batch_size=40", "trainer.fit.evaluate_every=2"]  # fmt: skip
STUDY = ["analysis=grokking", "model=grokking_code", "dataset=modular_addition", *TINY, "analysis.donors=[12,6]",
         "runs=[multirun/explaind_grokking]", "analysis.seeds=1", "analysis.steps=4",
         "analysis.swap_every=3"]  # fmt: skip


@pytest.mark.long
def test_the_study_ends_in_a_page(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ["experiment=explaind_grokking", *TINY, "dataset.query_limit=15", "metric.plots=false"]
    commands.done("attribute", *steps)
    assert "runs: no store has train, query and component kept" in commands.refused("evaluate", *STUDY)
    windows = ["experiment=explaind_grokking_windows", *TINY, "dataset.query_limit=12", "method.single=30"]
    commands.done("attribute", *windows, "method.steps=[2,5],[8,11]", "metric.plots=false")
    commands.done("evaluate", *STUDY)
    folder = only("outputs/evaluate/*")
    found = metrics(folder)
    assert found["agreement"] == 1 and found["windows"] == 2 and found["lasso_modulus"] == 11
    assert {
        "retrained_end/attention/6",
        "swap_best/outer",
        "retrained_end/outer + linear 1/12",
        "plotted/lm_head",
        "kernel_peak",
    } <= set(found)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('class="finding ') == 19 and "memorises first and generalises late" in page
    assert "never reached 0.99" in page  # twelve steps teach nothing
    assert {file.stem for file in (folder / "plots").glob("*.png")} == {
        "training", "influence_decoder", "influence_layers", "similarity", "similarity_layers", "lasso", "waves",
        "swaps", "retrained", "balance",
    }  # fmt: skip
    trained = pd.read_csv(folder / "retrained.csv")
    assert set(trained["donor"]) == {12, 6} and set(trained["graft"].unique()) == set(
        pd.read_csv(folder / "swaps.csv")["graft"]
    ) - {"none"}
    control = pd.read_csv(folder / "ungrafted.csv")  # from weights drawn as those beside the grafts are
    assert list(control["test"][control["step"] == 4]) == [found["usual_test"]]
    line = commands.refused("evaluate", *STUDY, "trainer.fit.steps=6", "analysis.donors=[6]")
    assert "a store is of another training than the configured one" in line
    assert "must be one of at least two analysis.grafts" in commands.refused(
        "evaluate", *STUDY, "analysis.outer=outside"
    )
    assert "step 13 was not recorded" in commands.refused("evaluate", *STUDY, "analysis.donors=[13]")


@pytest.mark.long
def test_every_decomposition_has_a_page(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = ["model=grokking_code", "dataset=modular_addition", *TINY, "method=explaind", "dataset.query_limit=5"]
    task += ["method.quadrature.rule=gauss"]  # one node a step: how exact they are is not what is looked at
    cases = (
        ("[step,component]", {"completeness", "importance", "influence", "components"}, {"components"}),
        ("[step]", {"completeness"}, set()),
        ("[]", {"completeness"}, set()),
        ("[component,query,train]", {"completeness", "components"}, {"components", "train", "train_by_query"}),
        ("[train]", {"completeness"}, {"train"}),
        ("[part,step,component,output]", {"completeness", "importance", "influence", "components"}, {"components"}),
    )
    for number, (keep, figures, tables) in enumerate(cases):
        extra = ["method.partition=target"] if "part" in keep else []
        commands.done("attribute", *task, f"method.keep={keep}", *extra, f"hydra.run.dir={number}")
        page = Path(str(number)) / "report.html"
        assert page.exists() and "How complete the account is" in page.read_text(encoding="utf-8")
        assert {file.stem for file in (Path(str(number)) / "plots").glob("*.png")} == figures
        assert {file.stem for file in Path(str(number)).glob("*.csv")} == tables
    table = pd.read_csv("3/train.csv")
    assert len(table) == 10 and table["absolute"].is_monotonic_decreasing
