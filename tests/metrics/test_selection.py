import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics import retrieval
from tdaexp.metrics.selection import by_type, describe, held_out_accuracy, products_of, study
from tdaexp.metrics.stores import by_query_set
from tdaexp.selection.greedy import cut, greedy_order, search


@pytest.fixture
def studies(products_dataset, quick):
    return study(products_dataset, quick)


def test_names_are_split_into_type_and_depth():
    names = ["embed", "layers.12.attn.q", "model.layers.3.mlp.w1.weight", "norms", "4.w.5.b"]
    table = describe(np.array(names), np.arange(5))
    assert table["type"].tolist() == ["embed", "attn.q", "model.layers.#.mlp.w1.weight", "norms", "#.w.5.b"]
    assert table["depth"].tolist()[1:3] == [12, 3]
    assert table["depth"].isna().tolist() == [True, False, False, True, False]


def test_single_components_score_as_their_own_cosine(products_dataset, studies):
    for name, part in by_query_set(products_dataset).items():
        for k, component in enumerate(part["component"].values):
            alone = influence.cosine(part, (part["component"] == component).astype(float)).values
            expected = retrieval.accuracy(alone, part["truth"].values).mean()
            assert studies[name].table["accuracy"][k] == expected
    assert studies["easy"].table["accuracy"][4] == 1
    assert studies["hard"].table["accuracy"][4] == 0


def test_curves_are_the_greedy_paths(products_dataset, studies):
    for name, part in by_query_set(products_dataset).items():
        arrays = [part[key].values for key in ("influence", "query_sq", "train_sq", "truth")]
        for objective, curve in studies[name].curves.items():
            order, path = greedy_order(*arrays, objective)
            assert curve.order.tolist() == order.tolist()
            np.testing.assert_array_equal(getattr(curve, objective), path)
            np.testing.assert_allclose(curve.share, np.cumsum(part["size"].values[order]) / 100)
            assert curve.share[-1] == 1
            assert curve.fidelity[-1] == pytest.approx(1)
            # All components: nothing is left to select.
            assert curve.held_out[-1] == pytest.approx(path[-1], abs=1e-9)


def test_peak_and_full(products_dataset, studies):
    easy = studies["easy"]
    assert easy.peak == 1
    assert easy.peak_share == pytest.approx(0.2)  # layers.1.mlp.up alone
    assert easy.peak_held_out.tolist() == [1] * 12
    part = by_query_set(products_dataset)["hard"]
    expected = retrieval.accuracy(influence.scores(part).values, part["truth"].values).mean()
    assert studies["hard"].full == expected


def test_table_by_type(studies):
    table = by_type(studies)
    assert table.index.tolist() == ["embed", "attn.q", "mlp.up"]
    assert table["components"].tolist() == [1, 2, 2]
    assert table["parameters"].tolist() == [40, 10, 20]
    single = studies["hard"].table["accuracy"]
    assert table["hard"].tolist() == pytest.approx([single[0], single[[1, 3]].mean(), single[[2, 4]].mean()])


@pytest.mark.parametrize("objective", ["accuracy", "fidelity", "single"])
def test_held_out_accuracy_repeats_the_methods_own_selection(selected, quick, objective):
    for part in by_query_set(selected(0.3, objective)).values():
        products, sizes = products_of(part), part["size"].values
        fold = np.random.default_rng(quick.seed).permutation(np.arange(12) % quick.folds)
        expected = np.empty(12)
        for query in range(12):
            admitted = np.flatnonzero(sizes <= 30)
            order, _ = search(products.rows(fold != fold[query]), objective, admitted)
            chosen = np.isin(np.arange(5), cut(order, sizes, 0.3)).astype(float)
            row = part.isel(query=[query]).drop_vars("weight")
            alone = influence.cosine(row, row["component"].copy(data=chosen))
            expected[query] = retrieval.accuracy(alone.values, row["truth"].values)[0]
        assert held_out_accuracy(part, quick).tolist() == expected.tolist()


def test_nothing_is_held_out_where_nothing_was_selected(products_dataset, selected, quick):
    assert held_out_accuracy(by_query_set(products_dataset)["easy"], quick) is None
    listed = selected(0.3).assign_attrs(objective=None)  # a list from a file, not from these queries
    assert held_out_accuracy(by_query_set(listed)["easy"], quick) is None


def test_no_study_without_products_or_truth(products_dataset, quick):
    assert study(products_dataset.assign_attrs(normalise="none"), quick) == {}
    easy_only = products_dataset.copy()
    easy_only["truth"] = products_dataset["truth"] & (products_dataset["query_set"] == "easy")
    assert list(study(easy_only, quick)) == ["easy"]
