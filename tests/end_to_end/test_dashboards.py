"""Dashboards of real runs: whatever a specification names, the runs have in wandb."""

from __future__ import annotations

import json

import pytest
import wandb
from commands import TINY, only
from wandb_file import told

QUIET = "metric.plots=false"
OFFLINE = "logger=wandb"
KINDS = {"table": "table-file", "media": "image-file"}


def named(value):
    """Every (kind, name) of something that runs have in wandb, in a specification: summary, config, table, media."""
    if isinstance(value, list):
        return set().union(*map(named, value))
    if not isinstance(value, dict):
        return set()
    panel = value["config"] if "viewType" in value else {}
    accessors = [panel.get("xAxis"), panel.get("yAxis"), *(one["accessor"] for one in panel.get("columns", ()))]
    found = {tuple(text.split(":", 1)) for text in [*accessors, *value.get("columnPinned", ())] if text}
    found |= {("summary", name) for name in panel.get("metrics", ())}
    found |= {("media", name) for name in panel.get("mediaKeys", ())}
    found |= {("config", panel["groupBy"])} if "groupBy" in panel else set()
    found |= {("table", value["value"])} if value.get("name") == "tableKey" else set()
    found |= {("table", value["val"])} if value.get("nodeType") == "const" else set()
    return found.union(*map(named, value.values()))


def has(run, kind, name):
    """Whether a run really has what is named, by its offline file."""
    _, config, summary, media = run
    if kind == "config":
        first, envelope, *rest = name.split(".")
        place = config.get(first)
        for one in rest:
            place = place[one]
        return envelope == "value" and place is not None
    if kind == "summary":
        return isinstance(summary.get(name), int | float)
    return media.get(name) == KINDS[kind]


def filtered(runsets):
    """The ids of the runs that a view lets through."""
    (runset,) = runsets
    (one,) = runset["filters"]["filters"]
    assert (one["key"], one["op"]) == ({"section": "run", "name": "name"}, "IN")
    return one["value"]


@pytest.mark.long
def test_a_dashboard_names_what_the_runs_have(commands, tmp_path):
    commands.done("attribute", *TINY, QUIET, OFFLINE, "-m", "method=project", "budget=0.05,0.2")
    sweep, board = only("multirun/*"), tmp_path / "board.csv"
    listed = f"runs=[{sweep}]"
    err = commands.done("evaluate", "dashboard=workspace", OFFLINE, QUIET, "metric.bootstrap=50", listed)
    assert "dashboard.json: written, nothing was sent" in err
    folder = only("outputs/evaluate/*")
    board.write_text("method,subject,metric,value,low,high,cost_seconds\ndot,digits,lds,0.5,0.4,0.6,2\n")
    commands.done("evaluate", "dashboard=report", f"leaderboard={board}", OFFLINE)
    wandb.teardown()  # its service writes behind the runs' ends

    runs, own = [told(folder) for folder in sorted(sweep.glob("[0-9]*"))], told(folder)
    view = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))
    assert view["displayName"].startswith("tdaexp: attribute budget 0.05,0.2 ")
    names = named(view) - {("run", "displayName")}
    assert {
        ("config", "budget.value"),
        ("summary", "paraphrased/heldout_accuracy"),
        ("summary", "cost/seconds"),
    } <= names
    assert {("table", "compared_texts"), ("table", "generated mrr by budget")} <= names
    for kind, name in names:
        assert has(own, kind, name) if kind == "table" else all(has(run, kind, name) for run in runs), (kind, name)
    assert filtered(view["spec"]["section"]["runSets"]) == [run[0] for run in [*runs, own]]

    folder = next(path.parent for path in tmp_path.glob("outputs/evaluate/*/leaderboard.md"))
    view = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))
    assert ("table", "leaderboard") in named(view)
    assert all(has(told(folder), kind, name) for kind, name in named(view))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dashboard=board", OFFLINE], "dashboard: unknown value 'board'; choices: report, workspace"),
        (["dashboard=workspace"], "dashboard=workspace: shows what is in wandb; take logger=wandb"),
        (["dashboard=report", OFFLINE, "logger.mode=disabled"], "dashboard=report: shows what is in wandb"),
        (["dashboard=report", OFFLINE, "cache=list"], "dashboard=report: is of a comparison of runs; leave cache out"),
        (["leaderboard=board.csv"], "leaderboard=board.csv: is shown in a report; add dashboard=report"),
        (["leaderboard=none.csv", "dashboard=report", OFFLINE], "leaderboard=none.csv"),
    ],
)
def test_what_cannot_be_shown_is_refused(commands, arguments, message):
    assert message in commands.refused("evaluate", *arguments)


def test_a_missing_package_is_named_with_what_to_install(commands, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package wandb-workspaces; pip install 'tdaexp[dashboards]'" in commands.refused(
        "evaluate", "dashboard=workspace", OFFLINE
    )
