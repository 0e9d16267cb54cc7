"""What every method must do, checked for each YAML in conf/method/ on one tiny problem."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from tiny_problem import TRAIN

from method_pages import documented, fills
from prose import parts
from tdaexp import influence
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.data.records import Record
from tdaexp.problem import Problem
from tdaexp.runtime.blockstore import BlockStore

RECORDED = {"explaind", "magic"}  # go over a training, which nobody made here
METHODS = sorted({file.stem for file in Path(__file__).parents[2].glob("conf/method/*.yaml")} - RECORDED)
BLIND = {"random"}  # does not look at the examples, so resemblance means nothing to it
WHOLE = {"arnoldi": ["method.steps=50", "method.rank=40"]}  # a projection to few dimensions need not know an example
BATCHES = {"tokens_per_batch": 150}  # several blocks of several passes
TOLERANCE = 1e-4  # float32, relative to the largest value of the same kind and component
every_method = pytest.mark.parametrize("name", METHODS)


def shortened(problem: Problem) -> Problem:
    """The problem with one candidate less for its first query: a pair that does not exist."""
    indices, bm25 = problem.candidates.indices.copy(), problem.candidates.bm25.copy()
    column = int(np.flatnonzero(~problem.truth[0])[-1])
    indices[0, column], bm25[0, column] = -1, np.nan
    return dataclasses.replace(problem, candidates=Candidates(indices, bm25))


def by_ids(dataset: xr.Dataset) -> dict[tuple[str, str, str], float]:
    """The answer by (query set, query, training example)."""
    sets, queries = dataset["query_set"].values, dataset["query"].values
    values, train = influence.scores(dataset).values, dataset["train"].values
    return {
        (sets[row], queries[row], train[row, column]): values[row, column] for row, column in np.argwhere(train != "")
    }


def assert_close(found: dict, wanted: dict) -> None:
    """Equal up to float32 rounding, relative to the largest score."""
    assert found.keys() == wanted.keys()
    scale = max(abs(value) for value in wanted.values())
    assert max(abs(found[pair] - value) for pair, value in wanted.items()) <= TOLERANCE * scale


def assert_same_bits(one: xr.Dataset, two: xr.Dataset) -> None:
    assert one.identical(two)
    for name in one.data_vars:
        assert one[name].values.tobytes() == two[name].values.tobytes(), name


@pytest.fixture(scope="module")
def usual(configured, make_problem, tmp_path_factory) -> Callable[[str], xr.Dataset]:
    """A method's answer on the common problem, found once; one pair there does not exist."""
    return functools.cache(
        lambda name: configured(name).attribute(shortened(make_problem(tmp_path_factory.mktemp("usual"), **BATCHES)))
    )


@every_method
def test_dimensions_types_and_labels(name, configured, problem, usual, tmp_path):
    problem, method = shortened(problem), configured(name)
    dataset = usual(name)
    queries, candidates = problem.pairs.shape
    dims = dataset["influence"].dims
    assert dims in {("query", "candidate"), ("query", "candidate", "component")}
    assert dataset["influence"].dtype.kind == "f"
    assert dataset["influence"].shape[:2] == dataset["truth"].shape == (queries, candidates)
    assert dataset["truth"].dtype == bool
    np.testing.assert_array_equal(dataset["truth"].values, problem.truth)
    assert list(dataset["query"].values) == problem.queries.ids
    assert list(dataset["query_set"].values) == problem.query_set
    ids = np.array([*problem.train.ids, ""], dtype=object)
    assert (dataset["train"].values == ids[problem.pairs]).all()
    assert (dataset["train"].values == "").sum() == 1
    assert method.name and method.label
    if "component" in dims:
        known = problem.components(list(dataset["component"].values))
        assert known.names == list(dataset["component"].values)
        assert list(dataset["size"].values) == [component.size for component in known.components]
    if dataset.attrs["normalise"] == "cosine":
        assert dataset["query_sq"].dims == ("query", "component")
        assert dataset["train_sq"].dims == ("query", "candidate", "component")
        assert (dataset["query_sq"].values >= 0).all() and (dataset["train_sq"].fillna(0).values >= 0).all()
    else:
        assert dataset.attrs["normalise"] == "none"
        assert not {"query_sq", "train_sq"} & set(dataset.data_vars)
    influence.save(dataset, tmp_path / "influence.zarr")
    assert influence.load(tmp_path / "influence.zarr").identical(dataset)


@every_method
def test_the_docstring_tells_what_is_filled_and_on_which_scale(name, configured, usual):
    """The pages of the methods are made of it."""
    document, dataset = documented(configured(name)), usual(name)
    there = ["query", "train", *(["component"] if "component" in dataset["influence"].dims else [])]
    summed = "component" in there and dataset.attrs["normalise"] == "none"
    assert fills(document) == [*there, *(["additive"] if summed else [])]
    scale, scores = parts(document)["Scale"], influence.scores(dataset).values
    lowest, highest = np.nanmin(scores), np.nanmax(scores)
    if scale.startswith("a cosine, from -1 to 1"):
        assert -1 - TOLERANCE <= lowest < highest <= 1 + TOLERANCE
    elif scale.startswith("from 0 to 1"):
        assert -TOLERANCE <= lowest < highest <= 1 + TOLERANCE
    else:
        assert "a cosine" not in scale or "summed" in scale


@every_method
def test_every_pair_and_only_pairs_have_a_finite_score(name, problem, usual):
    problem, dataset = shortened(problem), usual(name)
    exists = problem.pairs >= 0
    scores = influence.scores(dataset)
    assert scores.dims == ("query", "candidate")
    assert (np.isfinite(scores.values) == exists).all() and np.isnan(scores.values[~exists]).all()
    if "component" in dataset["influence"].dims:
        assert (np.isfinite(dataset["influence"].sum("component", skipna=False).values) == exists).all()
    if dataset.attrs["normalise"] == "cosine":
        assert np.abs(scores.values[exists]).max() <= 1 + TOLERANCE


@pytest.mark.long
@every_method
def test_neither_batch_size_nor_cache_nor_order_matters(name, configured, make_problem, usual, tmp_path):
    """One example at a time, all examples and columns in another order."""
    moved = permuted(shortened(make_problem(tmp_path, tokens_per_batch=1, cache_gb=1.0)))
    assert_close(by_ids(configured(name).attribute(moved)), by_ids(usual(name)))


@every_method
def test_neither_batch_size_nor_padding_matters(name, configured, make_problem, usual, tmp_path):
    """All examples at once: beside one of many tokens all others are padded; it has a query set of its own."""
    plain = shortened(make_problem(tmp_path / "plain", tokens_per_batch=100_000, cache_gb=1.0))
    words = "and then another word of many, " * 3
    extra_train = Record("long", "Where was nobody?", f"Nowhere, {words} and no more.")
    extra_query = Record("q-long", "Where was nobody, then?", f"Not here, {words} or there.", ("long",))
    padded = with_extra(plain, make_problem, tmp_path / "padded", extra_train, extra_query)
    assert padded.train.lengths.max() > 1.5 * plain.train.lengths.max()
    assert padded.queries.lengths.max() > 2 * plain.queries.lengths.max()
    found = by_ids(configured(name).attribute(padded))
    assert_close({pair: value for pair, value in found.items() if pair[0] != "long"}, by_ids(usual(name)))


def with_extra(usual, make_problem, cache, train, query):
    """The usual problem and one more query, in a set of its own, with the new example as a candidate."""
    alone = make_problem(cache, train=[train], queries={"long": [query]}, candidates=1)
    indices = np.concatenate([usual.pairs, [[len(usual.train), 0, 1, 2]]])
    lexical = np.concatenate([usual.candidates.bm25, [[4.0, 3.0, 2.0, 1.0]]])
    return dataclasses.replace(
        usual,
        train=Examples([*usual.train, *alone.train]),
        queries=Examples([*usual.queries, *alone.queries]),
        query_set=[*usual.query_set, "long"],
        candidates=Candidates(indices, lexical),
        truth=np.concatenate([usual.truth, [[True, False, False, False]]]),
        fitted=usual.curvature_examples,  # a curvature that knew the new example would rightly be another one
        cache=cache,
    )


def permuted(plain: Problem) -> Problem:
    """The same problem with queries, training examples and candidates in another order."""
    rng = np.random.default_rng(1)
    rows, moved, columns = (rng.permutation(n) for n in (len(plain.queries), len(plain.train), plain.pairs.shape[1]))
    place = np.append(np.argsort(moved), -1)  # where each training example is now; -1 stays -1
    return dataclasses.replace(
        plain,
        train=Examples([plain.train[index] for index in moved]),
        queries=Examples([plain.queries[index] for index in rows]),
        query_set=[plain.query_set[index] for index in rows],
        candidates=Candidates(place[plain.pairs[rows][:, columns]], plain.candidates.bm25[rows][:, columns]),
        truth=plain.truth[rows][:, columns],
    )


class Killed(BaseException):
    """As abrupt as a signal: nothing catches it."""


class Writes:
    """Counts the blocks that are stored, and stops the program in the middle of one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.last, self.real = 0, None, BlockStore.write
        patch.setattr(BlockStore, "write", lambda store, block, values: self(store, block, values))

    def __call__(self, store: BlockStore, block: int, values: dict[str, np.ndarray]) -> None:
        if self.count == self.last:
            first = next(iter(values))
            store.group[first][store.blocks[block]] = values[first]  # the block's flag is not set yet
            raise Killed
        self.real(store, block, values)
        self.count += 1


@every_method
@pytest.mark.long
def test_the_same_bits_again_also_after_kills_and_the_model_is_left_as_it_was(
    name, configured, make_problem, usual, monkeypatch, tmp_path
):
    wanted, problem = usual(name), shortened(make_problem(tmp_path / "straight", **BATCHES))
    model = problem.loaded.model
    model(torch.zeros(1, 2, dtype=torch.int64), output_hidden_states=True)  # transformers attaches hooks of its own
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [list(module._forward_hooks) for module in model.modules()]
    writes = Writes(monkeypatch)
    assert_same_bits(configured(name).attribute(problem), wanted)
    for key, value in model.state_dict().items():
        assert value.numpy().tobytes() == before[key].numpy().tobytes(), key
    assert hooks == [list(module._forward_hooks) for module in model.modules()]
    assert not model.training
    assert all(one.grad is None and not one.requires_grad for one in model.parameters())
    total = writes.count
    if not total:  # nothing to go on from: the method must not leave anything half done either
        assert not (tmp_path / "straight").exists()
        return
    assert total >= 3
    again = shortened(make_problem(tmp_path / "killed", **BATCHES))
    for last in (1, total - 2):  # in the second block, and in the last one
        writes.count, writes.last = 0, last
        with pytest.raises(Killed):
            configured(name).attribute(dataclasses.replace(again))
    writes.count, writes.last = 0, None
    resumed = configured(name).attribute(dataclasses.replace(again))
    assert writes.count == 1  # what was stored before is not computed again
    assert_same_bits(resumed, wanted)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BLIND])
def test_positive_is_helpful(name, configured, make_problem, tmp_path):
    """A query that is one training example, word for word, has no better explanation than that example."""
    copies = [dataclasses.replace(record, id=f"copy of {record.id}", truth=(record.id,)) for record in TRAIN]
    problem = make_problem(tmp_path, queries={"copies": copies}, candidates=len(copies))
    scores = influence.scores(configured(name, *WHOLE.get(name, [])).attribute(problem)).values
    own = scores[problem.truth]
    assert (own > 0).all()
    assert (own[:, None] >= scores).all()
