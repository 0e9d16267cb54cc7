"""The controls: lexical scores and random ones."""

import numpy as np
import pytest
from rank_bm25 import BM25Okapi
from scipy import stats
from tiny_problem import GENERATED, PARAPHRASED, TRAIN

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.selection.products_file import read_products


def test_bm25_scores_are_rank_bm25s_own(problem, compose):
    found = compose("method=bm25").attribute(problem)
    index = BM25Okapi([record.prompt.split() for record in TRAIN])
    for row, record in enumerate([*PARAPHRASED, *GENERATED]):
        wanted = index.get_scores(record.prompt.split())[problem.pairs[row]]
        np.testing.assert_allclose(influence.scores(found).values[row], wanted, rtol=1e-12)
    np.testing.assert_array_equal(found["influence"].values, found["bm25"].values)


def test_random_scores_belong_to_seed_set_and_ids_alone(make_problem, compose, tmp_path):
    def scores(seed, **keys):
        dataset = compose("method=random", f"seed={seed}").attribute(make_problem(tmp_path, **keys))
        names = zip(dataset["query_set"].values, dataset["query"].values, dataset["train"].values, strict=True)
        rows = zip(names, influence.scores(dataset).values, strict=True)
        return {
            (group, query, one): value
            for (group, query, train), values in rows
            for one, value in zip(train, values, strict=True)
        }

    usual = scores(0)
    fewer = scores(0, queries={"generated": GENERATED[2:]}, train=TRAIN[::-1], candidates=6)
    shared = usual.keys() & fewer.keys()
    assert len(shared) >= 8 and all(usual[pair] == fewer[pair] for pair in shared)
    other = scores(1)
    assert all(other[pair] != value for pair, value in usual.items())
    renamed = scores(0, queries={"mine": GENERATED})
    assert not set(renamed.values()) & set(usual.values())


def test_random_scores_are_uniform(make_problem, compose, tmp_path):
    queries = [Record(f"q{n}", "Where?", "There.", ("t0",)) for n in range(300)]
    problem = make_problem(tmp_path, queries={"many": queries}, candidates=12)
    values = compose("method=random").attribute(problem)["influence"].values
    assert stats.kstest(values.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.05
    top = values.argmax(axis=1)  # chance accuracy: each column wins equally often
    assert stats.chisquare(np.bincount(top, minlength=12)).pvalue > 0.01


@pytest.mark.parametrize("name", ["bm25", "random"])
def test_on_stored_products(products_file, compose, name):
    products = read_products(products_file)
    found = compose(f"method={name}").from_products(products)
    scores = influence.scores(found)
    assert scores.dims == ("query", "candidate") and np.isfinite(scores.values).all()
    assert "component" not in found.coords and found.attrs["normalise"] == "none"
    assert (found["truth"].values == products["truth"].values).all()
    if name == "bm25":
        np.testing.assert_array_equal(scores.values, products["bm25"].values)
    else:
        assert len(np.unique(scores.values)) == scores.size
