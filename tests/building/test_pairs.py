"""The pairs that scores of other programs are judged on are those that `attribute.py` scores, told without a model."""

from __future__ import annotations

import numpy as np
import pytest
from commands import TINY

from tdaexp import influence
from tdaexp.building import pairs as told
from tdaexp.building.build import builder_of
from tdaexp.building.pairs import pairs_of, pairs_of_products, problem_of
from tdaexp.report.texts import texts_of
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint

DIGITS = ("model=mnist_cnn", "dataset=digits", "model.padding=1", "dataset.train=40", "dataset.test=12",
          "dataset.query_limit=5", "trainer.fit.steps=2", "trainer.fit.batch_size=20")  # fmt: skip


@pytest.fixture
def configured(repository, tmp_path, cache, monkeypatch):
    """A checked configuration of `attribute.py`, as `evaluate.py` has its keys too."""
    from tdaexp.app.compose import open_composer
    from tdaexp.app.job import check

    monkeypatch.chdir(tmp_path)

    def of(*overrides):
        with open_composer("attribute", repository / "conf") as composer:
            given = [*overrides, f"cache_dir={cache}", "method=random"]
            parsed = composer.spelt(given)
            return check(composer, "attribute", parsed, composer.compose(parsed), ("tdaexp",)).config

    return of


def check_same(found, problem):
    assert found["query"].values.tolist() == list(problem.queries.ids)
    assert found["query_set"].values.tolist() == list(problem.query_set)
    ids = np.array([*problem.train.ids, ""], dtype=object)
    assert (found["train"].values == ids[problem.pairs]).all()
    assert (found["truth"].values == problem.truth).all()
    np.testing.assert_array_equal(found["bm25"].values, problem.candidates.bm25)
    known = np.ones(len(problem.truth), bool) if problem.truth_known is None else problem.truth_known
    assert influence.truth_known(found).tolist() == known.tolist()
    assert np.isnan(influence.scores(found).values).all()


@pytest.mark.parametrize(
    "overrides",
    [
        (*TINY, "dataset.query_limit=6", "seed=3"),
        (*TINY, "candidates=all", "dataset.query_sets=[paraphrased]"),
        (*DIGITS, "dataset.query_sets=[test,train]"),
        (*DIGITS, "candidates=sample", "candidates.b=7"),
    ],
    ids=["texts and completions", "all texts", "classes", "a sample"],
)
def test_pairs_are_those_of_the_problem_without_its_model(configured, monkeypatch, overrides):
    config = configured(*overrides)
    with monkeypatch.context() as without:
        for name in ("problem_of", "load_task"):
            without.setattr(told, name, None)
        found, texts = pairs_of(config)
    assert found.attrs["study"] is None
    problem = builder_of(config).problem(Clock())
    check_same(found, problem)
    own = texts_of(problem)
    assert texts["train"] == own["train"]
    assert all(texts["query"][one] == own["query"][one] for one in own["query"] if not one.endswith("/generated"))
    assert all(texts["query"][one].completion == "" for one in own["query"] if one.endswith("/generated"))


@pytest.mark.parametrize("overrides", [("dataset.chunk=8",), ("candidates.field=text",)], ids=["pieces", "completions"])
def test_where_a_model_decides_pairs_it_is_asked(configured, overrides):
    config = configured(*TINY, "dataset.query_limit=4", *overrides)
    (found, _), problem = pairs_of(config), problem_of(config)
    check_same(found, problem)
    assert found.attrs["study"] == problem.study


def test_the_mean_of_questions_is_one_query(configured):
    config = configured(*TINY, "candidates=all", "dataset.query_sets=[paraphrased]", "dataset.combine=mean")
    found, texts = pairs_of(config)
    assert list(texts["query"]) == ["paraphrased/mean"]
    assert found["query"].values.tolist() == ["mean"] and found["query_set"].values.tolist() == ["paraphrased"]
    with pytest.raises(UserError, match="have different candidates"):
        pairs_of(configured(*TINY, "dataset.query_sets=[paraphrased]", "dataset.combine=mean", "candidates.b=2"))


def test_pairs_of_a_products_file_have_its_ids(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"query_sq": (2, 3), "train_sq": (2, 4, 3)}
    file = tmp_path / "products.npz"
    np.savez(file, dot=rng.normal(size=(2, 4, 3)), component=["a", "b", "c"], size=[1, 2, 3], query=["x", "y"],
             target=[1, -1], **{name: rng.uniform(1, 2, shape) for name, shape in sizes.items()})  # fmt: skip
    found = pairs_of_products(file, "paraphrased")
    assert found["train"].values.tolist() == [["x#1", "x", "x#3", "x#4"], ["y#1", "y#2", "y#3", "y#4"]]
    assert influence.truth_known(found).tolist() == [True, False]
    assert found.attrs["study"] == file_fingerprint(file) and "component" not in found.dims
    assert found["query_set"].values.tolist() == ["paraphrased"] * 2
