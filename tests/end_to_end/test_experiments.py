"""The experiments: the four on the embedded default end in reports, those on OLMo-1B compose as the paper has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import REPOSITORY, TINY, metrics, only, rows

from tdaexp.cli.compose import open_composer
from tdaexp.cli.plan import plan

PAPERS = {
    "table1": [("full", None)],
    "fig4": [("select", 0.01), ("select", 0.05), ("project_paper", 0.01), ("project_paper", 0.05)],
    "fig5": [
        ("select_fidelity", 0.01),
        ("select_fidelity", 0.05),
        ("project_paper", 0.01),
        ("project_paper", 0.05),
    ],
    "table2": [("select", 0.01), ("select", 0.05), ("project_paper", 0.01), ("project_paper", 0.05)],
}


def planned(*overrides):
    with open_composer("attribute", REPOSITORY / "conf") as composer:
        return plan(composer, "attribute", list(overrides), False, ("tdaexp",))


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_own(name):
    jobs = planned(f"experiment=select_{name}", "dataset.paraphrases=FILE").jobs
    assert [(job.choices["method"], job.values["budget"]) for job in jobs] == PAPERS[name]
    for job in jobs:
        model, data, candidates = job.config.model, job.config.dataset, job.config.candidates
        assert (model.pretrained, model.expected_components) == ("amd/AMD-OLMo-1B-SFT", 113)
        assert (candidates.b, candidates.field, candidates.lowercase) == (5, "prompt", False)
        assert data.loss_on == "completion" and job.config.trainer.precision == "float32"
        sets = ["paraphrased"] if name == "table2" else ["paraphrased", "generated"]
        assert data.query_sets == sets
        if job.choices["method"] == "project_paper":
            assert (job.config.method.projection, job.config.method.rule) == ("trak", "paper")


def test_each_toy_experiment_has_its_counterpart():
    names = {file.stem for file in (REPOSITORY / "conf" / "experiment").glob("*.yaml")}
    for name in PAPERS:
        assert {f"select_{name}", f"toy_{name}"} <= names


def test_toy_table_1(commands):
    """Every component alone, on both query sets."""
    commands.done("attribute", "experiment=toy_table1", *TINY)
    folder = only("outputs/attribute/toy_gpt-biographies-full-*")
    head, *body = (folder / "components.csv").read_text().splitlines()
    assert {"component", "size", "paraphrased", "generated"} <= set(head.split(","))
    assert len(body) == 15 and body[0].startswith("embed")
    assert (folder / "report.html").stat().st_size > 10_000 and list((folder / "plots").glob("*.svg"))


@pytest.mark.parametrize("name", ["fig4", "fig5", "table2"])
def test_toy_sweeps(commands, name):
    """The jobs of the sweep, and the comparison that the file's comment names."""
    commands.done("attribute", f"experiment=toy_{name}", *TINY, "metric.plots=false", "budget=0.05,0.2")
    folder = Path(f"multirun/toy_{name}")
    table = rows(folder)
    methods = {"fig4": 2, "fig5": 2, "table2": 3}[name]
    assert len(table) == 2 * methods and {row["status"] for row in table} == {"done"}
    subject = [text for text in TINY if text.startswith(("model.", "dataset."))]
    commands.done("evaluate", *subject, "metric.bootstrap=50", f"runs=[{folder}]")
    compared = only("outputs/evaluate/*")
    assert len({key.split("/")[0] for key in metrics(compared)}) == 2 * methods
    assert (compared / "report.html").stat().st_size > 10_000
    if name == "table2":
        page = (compared / "report.html").read_text(encoding="utf-8")
        assert "trak" in page and "generated/accuracy" not in metrics(compared)
    else:
        key = "fidelity" if name == "fig5" else "accuracy"
        values = [value for name, value in metrics(compared).items() if name.endswith(f"/{key}")]
        assert len(values) == 2 * 2 * methods and all(-1 <= value <= 1 for value in values)
