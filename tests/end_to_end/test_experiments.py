"""The experiments: at scale=toy they end in reports, at scale=paper they compose as the paper has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import REPOSITORY, TINY, metrics, only, rows

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.runtime.errors import UserError

DEEPER = ("model.config.num_hidden_layers=6", "model.config.intermediate_size=64")
"""The smallest component is then below 1 % of the parameters, as in the embedded default."""
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
    jobs = planned(f"experiment=select_{name}", "scale=paper", "dataset.paraphrases=FILE").jobs
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


def test_two_scales_in_one_sweep():
    with open_composer("attribute", REPOSITORY / "conf") as composer:
        assert composer.spelt(["experiment=verses,select_fig4", "scale=toy,paper", "seed=1"]) == [
            "experiment=verses,select_fig4-toy,select_fig4-paper", "seed=1"
        ]  # fmt: skip


def test_an_experiment_says_what_each_scale_sets():
    (toy,) = planned("experiment=msif_single", "method=random").jobs
    assert (toy.choices["model"], toy.config.dataset.people, toy.config.trainer.fit.steps) == ("toy_neox", 150, 200)
    assert toy.config.dataset.query_limit == 10  # from what the file says for both
    given = ("dataset.path=FILE", "dataset.query_path=FILE", "dataset.text_column=text", "dataset.query_limit=3")
    (paper,) = planned("experiment=msif_single", "scale=paper", "method=random", *given).jobs
    assert (paper.choices["model"], paper.config.trainer.fit.steps) == ("ptb_neox", 5000)
    assert paper.config.dataset.query_limit == 3  # the command line has the last word


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["experiment=toy_table1"], "option 'experiment=toy_table1'.*it is experiment=select_table1 scale=toy now"),
        (["experiment=toy_msif_fig3"], "it is experiment=msif_fig3 scale=toy now"),
        (["experiment=select_fig4", "scale=big"], "option 'scale=big': unknown scale 'big'.*paper, toy"),
        (["experiment=verses", "scale=paper"], "experiment=verses has one size"),
        (["scale=paper"], "no experiment is chosen"),
        (["experiment=select_table1", "trainer.precison=x"], "did you mean 'precision'"),
        (
            ["experiment=msif_single", "scale=paper"],
            r"give either dataset.path=FILE .*conf/experiment/msif_single.yaml",
        ),
    ],
)
def test_scales_that_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        planned(*given)


def test_the_laptops_size_is_said_to_be_taken(capsys):
    planned("experiment=select_table1")
    assert "scale=toy, for a laptop, is taken" in capsys.readouterr().err
    planned("experiment=select_table1", "scale=toy")
    assert not capsys.readouterr().err


@pytest.mark.long
def test_toy_table_1(commands):
    """Every component alone, on both query sets."""
    commands.done("attribute", "experiment=select_table1", *TINY)
    folder = only("outputs/attribute/toy_gpt-biographies-full-*")
    head, *body = (folder / "components.csv").read_text().splitlines()
    assert {"component", "size", "paraphrased", "generated"} <= set(head.split(","))
    assert len(body) == 15 and body[0].startswith("embed")
    assert (folder / "report.html").stat().st_size > 10_000 and list((folder / "plots").glob("*.svg"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("fig4", ["select 0.01", "select 0.05", "project 0.01", "project 0.05"]),
        ("fig5", ["select_fidelity 0.01", "select_fidelity 0.05", "project 0.01", "project 0.05"]),
        ("table2", [f"{m} {b}" for m in ("select", "project", "project_paper") for b in (0.01, 0.05)]),
    ],
)
def test_toy_sweeps(commands, name, jobs):
    """The jobs of the sweep, and the comparison that the file's comment names."""
    commands.done("attribute", f"experiment=select_{name}", *TINY, *DEEPER, "metric.plots=false")
    folder = Path(f"multirun/select_{name}-toy")
    table = rows(folder)
    assert [row["status"] for row in table] == ["done"] * len(jobs)
    assert [told(row) for row in table] == jobs
    for row in table:
        assert float(row["paraphrased/share"]) <= 1.1 * float(told(row).split()[1]) or "paper" in told(row)
    subject = [text for text in (*TINY, *DEEPER) if text.startswith(("model.", "dataset."))]
    drawn = name == "fig4"
    commands.done("evaluate", *subject, "metric.bootstrap=50", f"runs=[{folder}]", f"metric.plots={drawn}".lower())
    compared = only("outputs/evaluate/*")
    found = metrics(compared)
    assert len({key.split("/")[0] for key in found}) == len(jobs)
    assert (compared / "report.html").stat().st_size > 10_000 and bool(list(compared.glob("plots/*.svg"))) == drawn
    groups = {"table2": {"paraphrased"}}.get(name, {"paraphrased", "generated"})
    assert {key.split("/")[1] for key in found} == groups
    values = [value for key, value in found.items() if key.endswith(("/accuracy", "/fidelity"))]
    assert len(values) == 2 * len(groups) * len(jobs) and all(-1 <= value <= 1 for value in values)
    if name == "table2":
        page = (compared / "report.html").read_text(encoding="utf-8")
        assert "trak" in page and "factorised" in page


def told(row):
    """Method and budget that a job of a sweep was told."""
    said = dict(text.partition("=")[::2] for text in row["overrides"].split())
    return f"{said['method']} {said['budget']}"


@pytest.mark.long
def test_the_command_line_replaces_what_an_experiment_sweeps_over(commands):
    overrides = ("metric.plots=false", "budget=0.05,0.2", "method=random,bm25,select")
    err = commands.refused("attribute", "experiment=select_fig4", *TINY, *overrides)
    assert "method 'random' does not read budget" in err
    overrides = ("metric.plots=false", "budget=0.05,0.2", "method=select")
    commands.done("attribute", "experiment=select_fig4", *TINY, *overrides)
    assert [told(row) for row in rows(Path("multirun/select_fig4-toy"))] == ["select 0.05", "select 0.2"]
