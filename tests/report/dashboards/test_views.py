"""Workspaces and reports as specifications, and where they go: nothing is sent unless the run is."""

from __future__ import annotations

import json
import logging

import pandas as pd
import pytest

from tdaexp.report.dashboards import library
from tdaexp.report.dashboards.leaderboard import COLUMNS, as_leaderboard, check_leaderboard, markdown, report
from tdaexp.report.dashboards.workspace import METHODS, TEXTS, curves, workspace
from tdaexp.report.mirrored import Mirrored, read_mirrored
from tdaexp.runtime.errors import UserError


def mirrored(name, config=None, metrics=None, **more):
    values = {"project": "tdaexp", "entity": None, "group": "attribute method=a,b", "offline": True}
    return Mirrored(id=name, name=name, config=config or {}, metrics=metrics or {}, **(values | more))


@pytest.fixture
def runs():
    bounds = {"p/lds": 0.5, "p/lds_low": 0.4, "p/lds_high": 0.6, "cost/seconds": 3.0}
    return [
        mirrored(f"{name}{damping}", {"choice": {"method": name}, "method": {"damping": damping}}, dict(bounds))
        for name in ("a", "b")
        for damping in (0.1, 1.0)
    ]


def panels(view):
    sections = library.specification(view)["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [(one["viewType"], one["config"]) for one in section["panels"]] for section in sections}


def test_a_workspace_shows_keys_metrics_costs_and_texts(runs):
    own = mirrored("own", tables=[*curves(runs), TEXTS, METHODS], images=["accuracies"])
    found = panels(workspace(runs, own))
    assert list(found) == [
        "The sweep",
        "By method",
        "By method.damping",
        "Against cost",
        "Helpful and harmful texts",
        "The methods compared",
    ]
    (kind, parallel), _ = found["The sweep"]
    assert kind == "Parallel Coordinates Plot"
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:choice.value.method",
        "config:method.value.damping",
        "summary:p/lds",
        "summary:cost/seconds",
    ]
    ((kind, bars),) = found["By method"]
    assert (kind, bars["metrics"], bars["groupBy"], bars["groupArea"]) == (
        "Bar Chart",
        ["p/lds"],
        "choice.value.method",
        "minmax",
    )
    ((_, lines),) = found["By method.damping"]
    assert lines["panelDefId"] == "wandb/lineseries/v0"
    assert "p lds by method.damping" in json.dumps(lines["userQuery"]) and "p lds by method.damping" in own.tables
    ((_, scatter),) = found["Against cost"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:cost/seconds", "summary:p/lds")
    assert library.specification(workspace(runs, own))["displayName"] == "tdaexp: attribute method a,b"


def test_what_is_not_in_wandb_is_not_shown(runs):
    for run in runs:
        del run.metrics["cost/seconds"]
    found = panels(workspace(runs, mirrored("own")))
    assert list(found) == ["The sweep", "By method"]
    assert not any("cost" in column["accessor"] for column in found["The sweep"][0][1]["columns"])


BOARD = pd.DataFrame(
    [
        ("dot", "digits", "lds", 0.27, 0.2, 0.3, 2.0),
        ("ek|fac", "digits", "lds", 0.54, 0.5, 0.6, 200.0),
        ("ek|fac", "digits", "removal", 1.5, None, None, 200.0),
        ("dot", "verses", "lds", -0.1, None, None, None),
    ],
    columns=COLUMNS,
)


def test_a_leaderboard_is_a_table_for_each_subject():
    assert markdown(check_leaderboard(BOARD, "board")) == {
        "digits": "| method | lds | removal | cost |\n| --- | ---: | ---: | ---: |\n"
        "| ek\\|fac | 0.540 [0.500, 0.600] | 1.500 | 3.3 min |\n| dot | 0.270 [0.200, 0.300] |  | 2 s |",
        "verses": "| method | lds | cost |\n| --- | ---: | ---: |\n| dot | -0.100 |  |",
    }
    own = mirrored("own", images=["pareto"])
    view = json.dumps(library.specification(report(BOARD, own, "Leaderboard")))
    for part in ("0.540 [0.500, 0.600]", '"verses"', '"leaderboard"', '"pareto"', '"cost_seconds"'):
        assert part in view, part


def test_query_sets_of_a_subject_stand_apart():
    table = pd.concat([BOARD[:1].assign(query_set=name) for name in ("paraphrased", "generated")])
    assert list(markdown(check_leaderboard(table, "board"))) == ["digits, paraphrased", "digits, generated"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda board: board.drop(columns="low"), "lacks the columns low"),
        (lambda board: board[:0], "has no rows"),
        (lambda board: board.assign(value=["1", "x", "2", "3"]), "row 2: value is no number"),
        (lambda board: board.assign(value=[1, 2, None, 3]), "row 3: value is no number"),
        (lambda board: board.assign(high=["", "", "", "much"]), "high is no number"),
        (lambda board: board.assign(method=["a", None, "b", "c"]), "row 2 has no method"),
        (lambda board: pd.concat([board, board[:1]]), "row 5: dot on digits has lds twice"),
    ],
)
def test_a_table_that_is_no_leaderboard_is_refused(change, message):
    with pytest.raises(UserError, match=message) as refused:
        check_leaderboard(change(BOARD), "board.csv")
    assert str(refused.value).startswith("board.csv: ") and "\n" not in str(refused.value)


def test_a_comparison_as_a_leaderboard_has_each_control_once():
    metrics = {"p/accuracy": 0.5, "p/accuracy_low": 0.4, "p/accuracy_high": 0.6, "p/share": 0.1}
    metrics |= {"p/bm25_accuracy": 0.8, "p/bm25_accuracy_low": 0.7, "p/bm25_accuracy_high": 0.9}
    metrics |= {"p/random_accuracy": 0.2, "p/minus_bm25": -0.3, "p/minus_bm25_low": -0.4, "p/minus_bm25_high": -0.2}
    both = {f"{label}/{name}": value for label in ("a/b (5 %)", "c") for name, value in metrics.items()}
    both |= {"c/p/heldout_accuracy": 0.3, "c/p/heldout_accuracy_low": 0.2, "c/p/heldout_accuracy_high": 0.4}
    table = as_leaderboard(both, {"c": 2.0})
    assert table.set_index("method")["value"].to_dict() == {"a/b (5 %)": 0.5, "BM25": 0.8, "random": 0.2, "c": 0.3}
    assert set(table["metric"]) == {"accuracy"} and set(table["subject"]) == {"p"}
    assert table.set_index("method")["cost_seconds"].dropna().to_dict() == {"c": 2.0}
    check_leaderboard(table, "comparison")


class View:
    """A view that tells whether it was sent."""

    url = "https://wandb.example/view"

    def __init__(self, error=None):
        self.sent, self.error = 0, error

    def save(self):
        self.sent += 1
        if self.error:
            raise self.error


def test_only_an_online_run_sends_its_dashboard(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(library, "specification", lambda view: {"a": 1})
    caplog.set_level(logging.INFO)
    view = View()
    library.deliver(view, mirrored("own"), tmp_path)
    assert json.loads((tmp_path / "dashboard.json").read_text()) == {"a": 1} and not view.sent
    library.deliver(view, mirrored("own", offline=False), tmp_path)
    assert view.sent == 1 and caplog.messages[-1] == "dashboard: https://wandb.example/view"
    with pytest.raises(UserError, match=r"wandb did not take it \(no access\); .*dashboard.json holds it"):
        library.deliver(View(ValueError("no\naccess")), mirrored("own", offline=False), tmp_path)


def test_what_was_mirrored_is_read_again(tmp_path):
    assert read_mirrored(tmp_path) is None
    told = mirrored("own", {"a": {"b": 1}}, {"m": 0.5}, tables=["t"], images=["i"])
    told.write(tmp_path)
    assert read_mirrored(tmp_path) == told
    (tmp_path / "wandb" / "mirrored.json").write_text("[")
    with pytest.raises(UserError, match="damaged"):
        read_mirrored(tmp_path)
