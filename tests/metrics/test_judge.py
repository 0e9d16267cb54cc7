import dataclasses
import math

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.compare import compare, judge_all
from tdaexp.metrics.controls import bm25_accuracy, random_accuracy
from tdaexp.metrics.intervals import bootstrap
from tdaexp.metrics.judge import assess, judge
from tdaexp.metrics.selection import held_out_accuracy, study
from tdaexp.metrics.stores import by_query_set


def test_chance_is_exact(products_dataset):
    assert random_accuracy(products_dataset).tolist() == pytest.approx([1 / 3] * 24)
    ragged = products_dataset.copy(deep=True)
    ragged["train"].values[0, ~products_dataset["truth"].values[0]] = ["", "x"]
    ragged["truth"].values[1] = [True, True, False]
    ragged["truth"].values[2] = False
    assert random_accuracy(ragged)[:4].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 1 / 3])


def test_chance_is_what_random_orders_give(products_dataset):
    rng = np.random.default_rng(0)
    truth = products_dataset["truth"].values.copy()
    truth[:, 0] = True  # one or two sources among three candidates
    from tdaexp.metrics.retrieval import accuracy

    drawn = np.mean([accuracy(rng.random(truth.shape), truth).mean() for _ in range(2000)])
    changed = products_dataset.assign(truth=(("query", "candidate"), truth))
    assert drawn == pytest.approx(random_accuracy(changed).mean(), abs=0.01)


def test_bm25_control(products_dataset):
    expected = products_dataset["truth"].values[:, 0].astype(float)  # BM25 likes column 0 best
    assert bm25_accuracy(products_dataset).tolist() == expected.tolist()
    none = products_dataset.assign(bm25=products_dataset["bm25"] * np.nan)
    assert bm25_accuracy(none) is None


def test_flat_metrics_of_a_known_case(products_dataset, quick):
    flat = judge(products_dataset, quick)
    scores = influence.scores(products_dataset).values
    truth = products_dataset["truth"].values
    best = scores.argmax(axis=1) == truth.argmax(axis=1)
    assert flat["easy/accuracy"] == best[:12].mean()
    assert flat["hard/accuracy"] == best[12:].mean()
    assert flat["easy/accuracy_low"] <= flat["easy/accuracy"] <= flat["easy/accuracy_high"]
    assert flat["easy/queries"] == 12
    assert flat["easy/random_accuracy"] == pytest.approx(1 / 3)
    assert flat["easy/bm25_accuracy"] == truth[:12, 0].mean()
    assert flat["easy/minus_bm25"] == pytest.approx(best[:12].mean() - truth[:12, 0].mean())
    assert flat["easy/share"] == flat["easy/rank_correlation"] == 1
    assert flat["easy/fidelity"] == pytest.approx(1)
    assert "easy/recall@5" not in flat  # of three candidates all are among the best five
    first = judge(products_dataset, dataclasses.replace(quick, top_k=1))
    assert first["easy/recall@1"] == first["easy/accuracy"]  # each query has one source
    assert "easy/heldout_accuracy" not in flat
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in flat.values())


def test_a_selection_is_compared_with_bm25_on_held_out_queries(select_dataset, quick):
    found = assess(select_dataset, quick)
    for name, part in by_query_set(select_dataset).items():
        held_out, lexical = held_out_accuracy(part, quick), bm25_accuracy(part)
        own, rest = found[name].held_out, found[name]
        assert rest.selected
        assert (own, rest.minus_bm25) == tuple(bootstrap(np.stack([held_out, held_out - lexical]), quick))
    flat = judge(select_dataset, quick, study(select_dataset, quick))
    assert flat["hard/heldout_accuracy"] == found["hard"].held_out.value
    assert flat["easy/greedy_peak_accuracy"] == 1
    assert flat["easy/best_component_accuracy"] == 1


def test_a_method_that_loses_to_bm25_is_seen_to(products_dataset, quick):
    good = products_dataset["truth"].astype(float)
    lexical = products_dataset.assign(bm25=good)
    found = assess(lexical, quick)
    assert found["hard"].verdict == "−"
    assert found["easy"].verdict == ("≈" if found["easy"].accuracy.value == 1 else "−")
    assert assess(products_dataset.assign(bm25=-good), quick)["easy"].verdict == "+"


def test_without_truth_there_is_no_accuracy(products_dataset, quick):
    blind = products_dataset.assign(truth=products_dataset["truth"] & False)
    flat = judge(blind, quick)
    assert not [key for key in flat if "accuracy" in key or "mrr" in key or "recall" in key]
    assert flat["easy/fidelity"] == pytest.approx(1)


def test_table_has_every_method_and_both_controls(products_dataset, select_dataset, quick):
    table = compare({"full": products_dataset, "select": select_dataset}, quick)
    rows = list(zip(table["method"], table["query_set"], strict=True))
    assert rows == [(m, s) for m in ("full", "select") for s in ("easy", "hard")] + [
        (m, s) for s in ("easy", "hard") for m in ("BM25", "random (expected)")
    ]
    by_row = table.set_index(["method", "query_set"])
    assert by_row.loc[("random (expected)", "easy"), "accuracy"] == pytest.approx(1 / 3)
    assert by_row.loc[("BM25", "hard"), "accuracy"] == bm25_accuracy(by_query_set(products_dataset)["hard"]).mean()
    assert by_row.loc[("full", "easy"), "cost_seconds"] == 2.5
    assert by_row.loc[("select", "easy"), "share"] <= 0.3
    assert by_row.loc[("select", "easy"), "selected"]
    assert by_row.loc[("full", "hard"), "heldout"] == by_row.loc[("full", "hard"), "accuracy"]
    assert by_row.loc[("BM25", "hard"), "vs_bm25"] == ""


def test_controls_that_are_stores_themselves_are_not_repeated(products_dataset, quick):
    lexical = products_dataset.drop_vars(["influence", "query_sq", "train_sq"]).drop_dims("component")
    lexical = lexical.assign(influence=products_dataset["bm25"]).assign_attrs(method="bm25", normalise="none")
    table = compare({"full": products_dataset, "bm25": lexical}, quick)
    assert table["method"].tolist() == ["full"] * 2 + ["bm25"] * 2 + ["random (expected)"] * 2


def test_fidelity_is_against_the_method_full_in_whatever_order(products_dataset, select_dataset, quick):
    for pair in ({"s": select_dataset, "f": products_dataset}, {"f": products_dataset, "s": select_dataset}):
        table = compare(pair, quick).set_index(["method", "query_set"])
        assert table.loc[("f", "easy"), "fidelity"] == pytest.approx(1)
        assert table.loc[("s", "hard"), "fidelity"] < 0.999


def test_stores_of_other_models_are_judged_against_their_own_full_gradient(products_dataset, quick):
    other = products_dataset.copy(deep=True).assign_attrs(study="other")
    other["influence"].values[:] *= np.random.default_rng(0).normal(size=other["influence"].shape)
    mine = products_dataset.assign_attrs(study="mine")
    judged = judge_all({"full": mine, "full (2)": other}, quick)
    for found in judged.values():
        assert [one.fidelity for one in found.values()] == pytest.approx([1.0] * len(found))
    mixed = judge_all({"full": mine, "full (2)": other.assign_attrs(study="mine")}, quick)
    assert all(one.fidelity < 0.99 for one in mixed["full (2)"].values())
