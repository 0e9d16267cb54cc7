"""Which keys of runs are axes, which metrics stand on them, and what a curve's bounds are."""

from __future__ import annotations

import pytest

from tdaexp.report.dashboards.swept import curve, headlines, judged_metrics, label, swept_keys, with_held_out
from tdaexp.report.mirrored import Mirrored


def run(metrics=None, **config):
    return Mirrored("id", "tdaexp", None, "name", None, offline=True, config=config, metrics=metrics or {})


def accuracy(value, half):
    return {"p/accuracy": value, "p/accuracy_low": value - half, "p/accuracy_high": value + half}


def test_keys_are_what_differs_and_said_once():
    runs = [
        run(
            choice={"method": name, "model": "m", "logger": logger},
            budget=budget,
            seed=seed,
            cache_dir=f"cache{seed}",
            git_commit=str(seed),
            logger={"tags": [], "group": str(seed)},
            method={"_target_": f"tdaexp.{name}", "budget": budget, "chunk": 1 if name == "select" else 2} | extra,
            trainer={"threads": 1},
        )
        for name, budget, seed, logger, extra in [
            ("select", 0.1, 0, "wandb", {}),
            ("select", 0.2, 1, "csv", {}),
            ("ekfac", None, 0, "csv", {"damping": 0.1}),
            ("ekfac", None, 1, "csv", {"damping": 0.2}),
        ]
    ]
    keys = swept_keys(runs)
    assert [key.path for key in keys] == ["choice.method", "budget", "seed", "method.damping"]
    assert [key.name for key in keys] == ["method", "budget", "seed", "method.damping"]
    assert [key.numeric for key in keys] == [False, True, True, True]
    assert [key.everywhere for key in keys] == [True, False, True, False]
    assert [key.repeats for key in keys] == [False, False, True, False]
    assert [label(number, keys) for number in range(4)] == [
        "select budget=0.1",
        "select budget=0.2",
        "ekfac method.damping=0.1",
        "ekfac method.damping=0.2",
    ]


def test_two_choices_that_go_together_are_both_told():
    runs = [run(choice={"model": name, "dataset": name}) for name in ("one", "two")]
    assert [key.path for key in swept_keys(runs)] == ["choice.model", "choice.dataset"]


def test_metrics_are_those_with_bounds_that_every_run_has():
    metrics = accuracy(0.5, 0.1) | {"p/mrr": 0.5, "p/bm25_accuracy": 0.1, "p/bm25_accuracy_low": 0, "p/queries": 9}
    metrics |= {"p/bm25_accuracy_high": 0.2, "g/lds": 0.3, "g/lds_low": 0.2, "g/lds_high": 0.4}
    metrics |= {"g/mrr": 0.3, "g/mrr_low": 0.2, "g/mrr_high": 0.4}
    assert judged_metrics([run(metrics), run(metrics)]) == ["p/accuracy", "g/lds", "g/mrr"]
    assert headlines(judged_metrics([run(metrics)])) == ["p/accuracy", "g/lds"]
    assert judged_metrics([run(metrics), run(accuracy(0, 0))]) == ["p/accuracy"]


def test_what_was_selected_on_its_queries_is_compared_on_held_out_ones():
    chosen = accuracy(0.9, 0.05) | {f"p/heldout_{name[2:]}": value for name, value in accuracy(0.4, 0.1).items()}
    plain = with_held_out(accuracy(0.5, 0.1))
    assert with_held_out(chosen) == chosen and plain["p/heldout_accuracy_low"] == 0.4
    assert judged_metrics([run(chosen), run(plain)]) == ["p/heldout_accuracy"]
    assert with_held_out({"p/accuracy": 1.0}) == {"p/accuracy": 1.0, "p/heldout_accuracy": 1.0}  # bounds are not known


def test_a_curve_has_the_widest_bounds_of_its_repetitions():
    runs = [
        run(accuracy(value, half), choice={"method": name}, budget=budget, seed=seed)
        for name, budget, seed, value, half in [
            ("a", 0.1, 0, 0.5, 0.1),
            ("a", 0.1, 1, 0.7, 0.05),
            ("a", 0.2, 0, 0.8, 0.1),
            ("b", 0.1, 0, 0.2, 0.0),
        ]
    ]
    keys = swept_keys(runs)
    points = {(x, series): y for x, series, y in curve(runs, keys, keys[1], "p/accuracy")}
    assert keys[1].path == "budget" and len(points) == 9
    assert points[0.1, "a"] == pytest.approx(0.6)
    assert (points[0.1, "a (low)"], points[0.1, "a (high)"]) == (0.5 - 0.1, 0.7 + 0.05)
    assert (points[0.2, "a"], points[0.1, "b"], points[0.1, "b (low)"]) == (0.8, 0.2, 0.2)
