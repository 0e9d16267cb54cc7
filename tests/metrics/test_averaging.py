"""Runs over seeds as one row: means, intervals over runs, and which of them compare."""

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tdaexp.metrics.averaging import average, mean_metrics, mean_retrained, over_runs
from tdaexp.metrics.compare import compare
from tdaexp.metrics.grouping import groups_of
from tdaexp.metrics.labels import distinct_labels
from tdaexp.runtime.errors import UserError


def seeded(store, seed, label="dot", **config):
    """A run's store of one seed: another model, other scores of the same pairs."""
    rng = np.random.default_rng([seed, *label.encode()])
    values = {"seed": seed, "method": {"name": label, "seed": seed}, "dataset": {"people": 10, "seed": 0}}
    noise = rng.normal(size=store["influence"].shape)
    changed = store.assign(influence=store["influence"] + noise)
    method = config.pop("method", {})
    values["method"] |= method
    return changed.assign_attrs(label=label, method=label, study=f"of {seed}", config=values | config)


def labelled(stores):
    return dict(zip(distinct_labels(stores), stores, strict=True))


@pytest.fixture
def runs(products_dataset):
    return labelled([seeded(products_dataset, seed, label) for label in ("dot", "cg") for seed in (0, 1, 2)])


def mean_of(stores, over, settings):
    groups = groups_of(stores, over)
    table = compare(stores, settings)
    return average(table, stores, groups, settings.confidence), table


def test_an_interval_over_runs_is_that_of_students_t():
    values = [0.3, 0.5, 0.45, 0.7]
    found = over_runs(values, 0.9)
    low, high = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))
    one = over_runs([0.3], 0.95)
    assert one.value == 0.3 and np.isnan(one.low) and np.isnan(one.high)
    assert over_runs([0.5, 0.5], 0.95) == (0.5, 0.5, 0.5)


def test_such_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.4, 0.1, (4000, 3))
    found = [over_runs(row, 0.8) for row in drawn]
    held = np.mean([one.low <= 0.4 <= one.high for one in found])
    assert held == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 4000))


def test_rows_are_means_over_the_runs_that_differ_in_the_key_alone(runs, quick):
    table, single = mean_of(runs, ["seed"], quick)
    for label in ("dot", "cg"):
        for name in ("easy", "hard"):
            row = table[(table["method"] == label) & (table["query_set"] == name)].squeeze()
            mine = single[single["method"].str.startswith(f"{label} [") & (single["query_set"] == name)]
            assert len(mine) == 3 and row["runs"] == 3 and row["missing"] == 0
            low, high = stats.t.interval(0.95, 2, loc=mine["heldout"].mean(), scale=stats.sem(mine["heldout"]))
            assert (row["heldout"], row["heldout_low"], row["heldout_high"]) == pytest.approx(
                (mine["heldout"].mean(), low, high), nan_ok=True
            )
            assert row["cost_seconds"] == mine["cost_seconds"].mean() and np.isnan(row["damping"])
            assert row["queries"] == 12 and row["section"] == 0 and row["differs"] == ""


def test_a_difference_is_paired_within_each_run(runs, quick):
    table, single = mean_of(runs, ["seed"], quick)
    row = table[(table["method"] == "dot") & (table["query_set"] == "easy")].squeeze()
    mine = single[single["method"].str.startswith("dot [") & (single["query_set"] == "easy")]
    assert row["minus_bm25"] == pytest.approx(mine["minus_bm25"].mean())
    expected = "+" if row["minus_bm25_low"] > 0 else "−" if row["minus_bm25_high"] < 0 else "≈"
    assert row["vs_bm25"] == expected


def test_controls_are_averaged_too_and_chance_has_no_interval(runs, quick):
    table, _ = mean_of(runs, ["seed"], quick)
    controls = table[table["control"] != ""]
    assert controls["runs"].tolist() == [3] * 4 and controls["missing"].tolist() == [0] * 4
    chance = controls[controls["control"] == "random"]
    assert chance["heldout"].tolist() == pytest.approx([1 / 3] * 2) and chance["heldout_low"].isna().all()


def test_a_method_that_lacks_a_seed_is_listed_and_says_so(runs, quick):
    table, _ = mean_of({label: one for label, one in runs.items() if label != "cg [seed=1]"}, ["seed"], quick)
    rows = table[table["query_set"] == "easy"].set_index("method")
    assert rows.loc["cg", ["runs", "missing", "section"]].tolist() == [2, 1, 0]
    assert rows.loc["dot", ["runs", "missing", "section"]].tolist() == [3, 0, 0]


def test_one_run_of_a_method_has_a_row_without_an_interval(runs, quick, caplog):
    few = {label: one for label, one in runs.items() if not label.startswith("cg") or label == "cg [seed=1]"}
    with caplog.at_level(logging.WARNING):
        table, _ = mean_of(few, ["seed"], quick)
    assert "'cg' has one run, so its row has no interval" in caplog.text
    row = table[(table["method"] == "cg") & (table["query_set"] == "easy")].squeeze()
    assert row["runs"] == 1 and row["missing"] == 2 and row["vs_bm25"] == ""
    assert np.isnan(row["heldout_low"]) and not np.isnan(row["heldout"])


def test_runs_on_other_pairs_stand_apart_as_single_runs_do(products_dataset, quick):
    other = products_dataset.isel(candidate=[0, 1])
    stores = [seeded(products_dataset, seed) for seed in (0, 1)]
    stores += [seeded(other, seed, candidates={"b": 2}) for seed in (0, 1)]
    table, _ = mean_of(labelled(stores), ["seed"], quick)
    places = table[(table["control"] == "") & (table["query_set"] == "easy")].set_index("method")
    assert places.index.tolist() == ["dot [candidates.b=null]", "dot [candidates.b=2]"]
    assert places["section"].tolist() == [0, 1] and places["missing"].tolist() == [0, 0]
    assert places["differs"].iloc[1].startswith("other candidates")
    assert "another model" not in places["differs"].iloc[1]


def test_methods_of_other_seeds_do_not_compare(products_dataset, quick):
    stores = [seeded(products_dataset, seed, "dot") for seed in (0, 1)]
    stores += [seeded(products_dataset, seed, "cg") for seed in (2, 3)]
    table, _ = mean_of(labelled(stores), ["seed"], quick)
    places = table[(table["control"] == "") & (table["query_set"] == "easy")]["section"]
    assert places.tolist() == [0, 1]


def test_scores_without_a_run_stand_beside_the_means_of_their_model(runs, quick):
    external = runs["dot [seed=1]"].assign_attrs(label="mine", method="external")
    del external.attrs["config"]
    table, _ = mean_of({**runs, "mine": external}, ["seed"], quick)
    row = table[(table["method"] == "mine") & (table["query_set"] == "easy")].squeeze()
    assert row[["runs", "missing", "section"]].tolist() == [1, 2, 0]


def test_keys_that_follow_may_differ_and_those_that_do_not_keep_runs_apart(products_dataset):
    fixed = [seeded(products_dataset, seed, method={"seed": 7}) for seed in (0, 1)]
    follow = [seeded(products_dataset, seed) for seed in (0, 1)]
    groups = groups_of(labelled([*fixed, *follow]), ["seed"])
    assert groups == {
        "dot [method.seed=7]": ["dot [method.seed=7, seed=0]", "dot [method.seed=7, seed=1]"],
        "dot [method.seed=null]": ["dot [method.seed=0, seed=0]", "dot [method.seed=1, seed=1]"],
    }
    assert len(groups_of(labelled(fixed), ["seed"])) == len(groups_of(labelled(follow), ["seed"])) == 1
    drawn = [seeded(products_dataset, seed, dataset={"people": 10, "seed": seed + 5}) for seed in (0, 1)]
    with pytest.raises(UserError, match="no two runs differ in these keys alone"):
        groups_of(labelled(drawn), ["seed"])
    assert len(groups_of(labelled(drawn), ["seed", "dataset.seed"])) == 1


def test_a_label_that_tells_what_is_averaged_gives_way_to_the_method(products_dataset):
    stores = [seeded(products_dataset, 0, method={"damping": d}).assign_attrs(label=f"dot ({d})") for d in (1, 2)]
    assert list(groups_of(labelled(stores), ["method.damping"])) == ["dot"]


def test_the_same_run_twice_counts_once(products_dataset, caplog):
    stores = labelled([seeded(products_dataset, seed) for seed in (0, 1, 1)])
    with caplog.at_level(logging.WARNING):
        groups = groups_of(stores, ["seed"])
    assert [len(members) for members in groups.values()] == [2]
    assert "is a second run of seed=1; the last one counts" in caplog.text


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["sede"], r"over: unknown key 'sede'; none of the runs has it; choices: seed"),
        (["trainer.warp"], r"over: unknown key 'trainer.warp'; none of the runs has it"),
        (["method"], r"over=method: is a set of keys; name those that runs differ in, e.g. over=method.name"),
        (["dataset.people"], r"over=dataset.people: every run has dataset.people=10, and a mean needs runs of several"),
        (["method.name"], "no two runs differ in these keys alone"),
    ],
)
def test_keys_that_nothing_can_be_averaged_over(runs, over, message):
    few = runs if over != ["method.name"] else {k: v for k, v in runs.items() if k in ("dot [seed=0]", "cg [seed=1]")}
    with pytest.raises(UserError, match=message):
        groups_of(few, over)


def test_a_seed_axis_with_one_value_is_said_in_one_line(products_dataset):
    stores = labelled([seeded(products_dataset, 0, label) for label in ("dot", "cg")])
    with pytest.raises(UserError, match=r"over=seed: every run has seed=0, .* -m seed=A,B,C`, or leave over out"):
        groups_of(stores, ["seed"])


def test_judging_by_retraining_is_averaged_too():
    runs = [("dot [seed=0]", 0.2), ("random", 0.0), ("dot [seed=1]", 0.4), ("random", 0.1), ("cg", 0.9)]
    rest = {"query_set": "test", "metric": "lds_same", "low": 0, "high": 1, "queries": 9}
    rows = [{"method": one, "value": value, **rest} for one, value in runs]
    groups = {"dot": ["dot [seed=0]", "dot [seed=1]"], "cg": ["cg"]}
    found = mean_retrained(pd.DataFrame(rows), groups, 0.95).set_index("method")
    assert found.index.tolist() == ["cg", "dot", "random"] and found["runs"].tolist() == [1, 2, 2]
    low, high = stats.t.interval(0.95, 1, loc=0.3, scale=stats.sem([0.2, 0.4]))
    assert found.loc["dot", ["value", "low", "high"]].tolist() == pytest.approx([0.3, low, high])
    assert np.isnan(found.loc["cg", "low"]) and found.loc["random", "value"] == pytest.approx(0.05)


def test_flat_metrics_of_runs_are_averaged_where_all_have_them():
    runs = [
        {"easy/accuracy": 0.2, "easy/accuracy_low": 0.1, "easy/accuracy_high": 0.3, "easy/share": 0.5, "easy/x": 1.0},
        {"easy/accuracy": 0.4, "easy/accuracy_low": 0.3, "easy/accuracy_high": 0.5, "easy/share": 0.7},
    ]
    found = mean_metrics(runs, 0.95)
    low, high = stats.t.interval(0.95, 1, loc=0.3, scale=stats.sem([0.2, 0.4]))
    assert found == pytest.approx(
        {"runs": 2, "easy/accuracy": 0.3, "easy/accuracy_low": low, "easy/accuracy_high": high, "easy/share": 0.6}
    )
    assert mean_metrics(runs[:1], 0.95) == {"runs": 1, "easy/accuracy": 0.2, "easy/share": 0.5, "easy/x": 1.0}
