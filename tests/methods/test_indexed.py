"""Pairs found in an index: those of a dense answer, whoever built the index, in whatever order, and whatever died."""

from __future__ import annotations

import importlib
import itertools
import logging
import pkgutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny_problem import GENERATED, PARAPHRASED, TRAIN

from tdaexp import influence, methods
from tdaexp.data.best import Best
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.gradients.passes import Gradients
from tdaexp.index import blocks as blocks_module
from tdaexp.index import index as index_module
from tdaexp.index.shares import Share
from tdaexp.methods.base import INDEXED, Method
from tdaexp.metrics.controls import bm25_answer, random_accuracy
from tdaexp.metrics.judge import judge
from tdaexp.metrics.settings import MetricSettings
from tdaexp.problem import Wanted
from tdaexp.runtime.errors import UserError

SIDE = ("method=project", "method.side=4")
EACH = {
    "project": SIDE,
    "logra": ("method=logra", "method.dimensions=16"),
    "trackstar": ("method=trackstar", "method.dimensions=16"),
}
GROWING = EACH | {
    "logra": (*EACH["logra"], "method.init=random"),
    "trackstar": (*EACH["trackstar"], "method.precondition=none"),
}
"""Rows that rest on no other training example."""
ONE = {"paraphrased": [PARAPHRASED[1]]}
"""A question whose source is the first example."""


def wanting(problem, k):
    """The problem with no pair named."""
    names, nothing = list(problem.train.ids), np.zeros((len(problem.queries), 0))
    asked = [*PARAPHRASED, *GENERATED][: len(problem.queries)]
    own = [np.array([names.index(source) for source in record.truth if source in names], int) for record in asked]
    pairs = Candidates(nothing.astype(np.int64), nothing)
    return replace(problem, candidates=pairs, truth=nothing.astype(bool), wanted=Wanted(Best(k), own))


def asked(method, problem, k=3):
    return method.attribute(method.found(wanting(problem, k)))


def files(cache: Path) -> dict[str, bytes]:
    """What the index consists of, without the time that it took."""
    return {
        str(file.relative_to(cache)): file.read_bytes()
        for file in sorted(cache.glob("index/[!.]*/*"))
        if file.name.endswith(".npy") or file.name == "documents.json"
    }


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of five documents: 5, 5 and 2 of twelve."""
    monkeypatch.setattr(index_module, "DOCUMENTS", 5)


@pytest.fixture
def passes(monkeypatch):
    """Ids of the examples that go through the model, as they do."""
    seen: list[str] = []
    capture = Gradients.capture

    def watched(self, members, consume):
        seen.extend(self.ids[member] for member in members)
        return capture(self, members, consume)

    monkeypatch.setattr(Gradients, "capture", watched)
    return seen


@pytest.mark.parametrize(
    "keys",
    [
        SIDE,
        ("method=logra", "method.dimensions=16"),
        ("method=logra", "method.dimensions=16", "method.init=random", "method.relative=true"),
        ("method=trackstar", "method.dimensions=16"),
        ("method=trackstar", "method.dimensions=16", "method.precondition=none", "method.storage=float16"),
    ],
    ids=["project", "logra", "logra relative", "trackstar", "trackstar in 16 bits"],
)
def test_found_pairs_are_the_first_and_the_last_of_a_dense_answer(make_problem, compose, small_blocks, tmp_path, keys):
    problem = make_problem(tmp_path, dtype=torch.float64, candidates=len(TRAIN))
    method = compose(*keys)
    dense, found = method.attribute(problem), asked(method, problem)
    assert found.sizes["candidate"] == 6 and found.attrs["searched"] == len(TRAIN)
    for part, whole in zip(influence.blocks(found), influence.blocks(dense), strict=True):
        order = np.argsort(-influence.scores(whole).values, axis=1)
        names = np.take_along_axis(whole["train"].values, order, axis=1)
        assert part["train"].values.tolist() == np.concatenate([names[:, :3], names[:, -3:]], axis=1).tolist()
        for name in {"influence", "train_sq"} & set(found):
            all_of = np.take_along_axis(whole[name].values, order[:, :, None], axis=1)
            wanted = np.concatenate([all_of[:, :3], all_of[:, -3:]], axis=1)
            np.testing.assert_allclose(part[name].values, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())
    settings = MetricSettings(bootstrap=10, top_k=3, plots=False)
    ours, all_pairs = judge(found, settings), judge(dense, settings)
    for metric in ("accuracy", "recall@3", "random_accuracy", "queries_with_truth"):
        assert ours[f"paraphrased/{metric}"] == all_pairs[f"paraphrased/{metric}"]
    assert np.array_equal(random_accuracy(bm25_answer(found)), np.full(len(found["query"]), 1 / len(TRAIN)))
    assert 0 < ours["paraphrased/mrr"] <= all_pairs["paraphrased/mrr"]


def test_products_are_as_close_to_the_gradients_as_johnson_and_lindenstrauss_have_it(make_problem, compose, tmp_path):
    """E<Sx,Sy> = <x,y>; of a two-sided sketch the variance is at most ((1 + 2/k_out)(1 + 2/k_in) - 1) |x|² |y|²."""
    problem = make_problem(tmp_path, dtype=torch.float64, candidates=len(TRAIN))
    full = compose("method=full").attribute(problem)
    place = {name: number for number, name in enumerate(problem.train.ids)}
    columns = np.vectorize(place.get)(full["train"].values)
    exact, norms = np.empty_like(full["influence"].values), np.empty_like(full["influence"].values)
    scale = np.sqrt(full["query_sq"].values[:, None] * full["train_sq"].values)
    for row, own in enumerate(columns):
        exact[row, own], norms[row, own] = full["influence"].values[row], scale[row]
    errors = []
    for seed in range(3):
        found = asked(compose(*SIDE, f"seed={seed}"), problem, k=len(TRAIN))
        mine = np.vectorize(place.get)(found["train"].values)
        rows = np.arange(len(mine))[:, None]
        errors.append((found["influence"].values - exact[rows, mine]) / norms[rows, mine])
    spread = np.sqrt((1 + 2 / 4) ** 2 - 1)
    assert (np.sqrt((np.stack(errors) ** 2).mean(axis=(0, 1, 2))) <= 1.3 * spread).all()
    assert np.abs(np.stack(errors)).max() <= 6 * spread


@pytest.mark.parametrize(("storage", "least"), [("float16", 0.9999), ("int8", 0.999)])
def test_fewer_bits_rank_alike(make_problem, compose, small_blocks, tmp_path, storage, least):
    problem = make_problem(tmp_path)
    whole, short = (
        asked(compose(*SIDE, *keys), problem, k=len(TRAIN)) for keys in ((), (f"method.storage={storage}",))
    )
    wanted = influence.dense(whole).sortby("train")
    found = influence.dense(short).sortby("train")
    assert found["train"].values.tolist() == wanted["train"].values.tolist()
    assert spearmanr(found.values.ravel(), wanted.values.ravel()).statistic > least
    assert np.abs(found.values - wanted.values).max() < (2e-3 if storage == "float16" else 2e-2)
    assert not np.array_equal(found.values, wanted.values)
    assert short.attrs["dimensions"] == whole.attrs["dimensions"]


@pytest.mark.parametrize("keys", EACH.values(), ids=EACH)
def test_another_question_takes_no_pass_over_the_training_examples(
    make_problem, compose, small_blocks, passes, caplog, tmp_path, keys
):
    method = compose(*keys)
    asked(method, make_problem(tmp_path, queries={"paraphrased": PARAPHRASED}))
    assert sorted(set(passes)) == sorted(record.id for record in (*TRAIN, *PARAPHRASED))
    passes.clear()
    with caplog.at_level(logging.INFO):
        asked(method, make_problem(tmp_path, queries={"generated": GENERATED}))
    assert sorted(passes) == sorted(record.id for record in GENERATED)
    assert "index: all 3 blocks are there, 12 training examples; no pass over them" in caplog.messages


def test_candidates_that_are_named_are_sketched_once_for_all_questions(make_problem, compose, passes, tmp_path):
    method, every = compose(*SIDE), len(TRAIN)
    method.attribute(make_problem(tmp_path, queries={"paraphrased": PARAPHRASED}, candidates=every))
    passes.clear()
    method.attribute(make_problem(tmp_path, queries={"generated": GENERATED}, candidates=every))
    assert sorted(passes) == sorted(record.id for record in GENERATED)


@pytest.mark.parametrize("keys", GROWING.values(), ids=GROWING)
def test_documents_that_are_added_change_no_block_before_them(make_problem, compose, small_blocks, tmp_path, keys):
    method = compose(*keys)
    first = method.index(make_problem(tmp_path / "grown", train=TRAIN[:7], queries=ONE))
    assert first.build() == 2
    grown, at_once = (method.index(make_problem(tmp_path / name)) for name in ("grown", "at once"))
    assert grown.missing() == [1, 2] and grown.build() == 2  # the second one has two documents more
    assert at_once.build() == 3
    kept = {one: content for one, content in files(tmp_path / "grown").items() if one.split("/")[1] not in
            {first.blocks[1].path.name}}  # fmt: skip
    assert kept == files(tmp_path / "at once")


@pytest.mark.parametrize("keys", GROWING.values(), ids=GROWING)
def test_shares_in_any_order_and_number_leave_the_same_bits(make_problem, compose, small_blocks, tmp_path, keys):
    method = compose(*keys, "method.storage=int8")
    method.index(make_problem(tmp_path / "whole")).build()
    expected = files(tmp_path / "whole")
    assert len(expected) == 9
    for of, order in ((3, (3, 1, 2)), (2, (2, 1)), (5, (5, 4, 3, 2, 1))):
        cache = tmp_path / f"of {of}"
        for number in order:
            method.index(make_problem(cache)).build(Share(number, of))
        assert files(cache) == expected
        assert method.index(make_problem(cache)).missing() == []


def test_indexes_that_lie_beside_each_other_are_one(make_problem, compose, small_blocks, passes, tmp_path):
    """Two machines, a share each; the folders of one are copied to the other."""
    method = compose(*SIDE)
    for number in (1, 2):
        method.index(make_problem(tmp_path / str(number))).build(Share(number, 2))
    for block in (tmp_path / "2" / "index").glob("[!.]*"):
        block.rename(tmp_path / "1" / "index" / block.name)
    passes.clear()
    assert method.index(make_problem(tmp_path / "1")).build() == 0 and not passes


def test_another_model_or_projection_finds_nothing(make_problem, compose, tmp_path):
    problem = make_problem(tmp_path)
    compose(*SIDE).index(problem).build()
    others = [
        *((*SIDE, key) for key in ("seed=1", "method.storage=int8", "method.reduction=sum", "method.part=mlp")),
        (*SIDE, "method.distribution=normal"),
        ("method=project", "method.side=5"),
    ]
    for keys in others:
        assert compose(*keys).index(problem).missing() == [0], keys
    for other in (replace(problem, identity="another"), make_problem(tmp_path, dtype=torch.float64),
                  make_problem(tmp_path, tokens_per_batch=128)):  # fmt: skip
        assert compose(*SIDE).index(other).missing() == [0]
    assert compose(*SIDE).index(problem).missing() == []


@pytest.mark.parametrize("name", ["rows.npy", "scale.npy", "documents.json", "checksums.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_damaged_block_is_named_and_built_again(make_problem, compose, small_blocks, caplog, tmp_path, name, how):
    index = compose(*SIDE, "method.storage=float16").index(make_problem(tmp_path))
    index.build()
    expected, file = files(tmp_path), index.blocks[1].path / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink()
    if how == "changed":
        file.write_bytes(content)
    assert index.build() == 1
    assert f"{index.blocks[1].path}: a damaged block of an index ({name}" in caplog.text
    assert files(tmp_path) == expected


def test_a_run_that_died_leaves_whole_blocks_and_goes_on_at_its_batch(
    make_problem, compose, small_blocks, monkeypatch, passes, tmp_path
):
    """Dying at the n-th batch, and while a block is written, for every n: the same bits, and no batch twice."""
    method = compose(*SIDE)
    method.index(make_problem(tmp_path / "straight", tokens_per_batch=64)).build()
    expected, batches = files(tmp_path / "straight"), 0
    passes.clear()
    capture = Gradients.capture
    for moment in itertools.count():
        cache, runs = tmp_path / str(moment), itertools.count()

        def dies(self, members, consume, runs=runs, moment=moment):
            if next(runs) == moment:
                raise KeyboardInterrupt
            return capture(self, members, consume)

        with monkeypatch.context() as patch:
            patch.setattr(Gradients, "capture", dies)
            try:
                method.index(make_problem(cache, tokens_per_batch=64)).build()
                break  # there are no more batches
            except KeyboardInterrupt:
                batches += 1
        assert set(files(cache).items()) <= set(expected.items())
        method.index(make_problem(cache, tokens_per_batch=64)).build()
        assert files(cache) == expected and not list(cache.glob("index/*-passes"))
        assert sorted(passes) == sorted(record.id for record in TRAIN)
        passes.clear()
    assert batches > 4


def test_a_block_that_was_not_written_to_its_end_is_not_there(
    make_problem, compose, small_blocks, monkeypatch, passes, tmp_path
):
    method, seal = compose(*SIDE), blocks_module.seal.seal

    def dies(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(blocks_module.seal, "seal", dies)
    with pytest.raises(KeyboardInterrupt):
        method.index(make_problem(tmp_path)).build()
    assert not files(tmp_path)
    monkeypatch.setattr(blocks_module.seal, "seal", seal)
    passes.clear()
    assert method.index(make_problem(tmp_path)).build() == 3
    assert sorted(passes) == sorted(record.id for record in TRAIN[5:])  # the first five had been computed


def test_what_another_builder_left_meanwhile_is_taken(
    make_problem, compose, small_blocks, monkeypatch, passes, tmp_path
):
    index = compose(*SIDE).index(make_problem(tmp_path))
    late = compose(*SIDE).index(make_problem(tmp_path))
    wanted = late.missing()
    index.build()
    passes.clear()
    monkeypatch.setattr(late, "missing", lambda share=None: wanted)
    late.build()
    assert wanted == [0, 1, 2] and not passes


def test_a_document_without_a_token_of_loss_is_named(make_problem, compose, tmp_path):
    problem = make_problem(tmp_path, train=TRAIN[:3], queries=ONE)
    silent = replace(problem.train[2], loss_mask=np.zeros_like(problem.train[2].loss_mask))
    with pytest.raises(UserError, match=f"'{silent.id}'"):
        compose(*SIDE).index(replace(problem, train=Examples([*problem.train.items[:2], silent]))).build()


def test_self_influence_beside_found_pairs(make_problem, compose, tmp_path):
    method = compose(*SIDE, "method.storage=int8")
    problem = method.found(wanting(make_problem(tmp_path), 2))
    own = method.self_influence(problem)["self_influence"]
    assert own.sizes["train"] == len(TRAIN) and (own.sum("component") > 0).all()


def test_a_second_stage_has_an_index_of_its_own(make_problem, compose, tmp_path):
    problem, method = make_problem(tmp_path), compose(*SIDE)
    found = [method.found(wanting(problem.after(stage), 3)) for stage in ("pretrained", "finetuned")]
    assert len(list(tmp_path.glob("index/[!.]*"))) == 2
    assert not np.array_equal(*(method.attribute(one)["influence"].values for one in found))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("method=ekfac", "candidates=best"), r"candidates=best: method=ekfac keeps no index .*; take method=project"),
        (("method=bm25", "candidates=best"), "candidates=best: method=bm25 keeps no index"),
        (("method=project", "candidates=best", "candidates.k=0"), "candidates.k=0: needs at least 1"),
        (
            ("method=project", "candidates=best", "dataset=text", "dataset.path=FILE", "dataset.combine=mean"),
            "dataset.combine: questions that are one need the same candidates",
        ),
        (("method=project", "shard=1/4"), "shard=1/4: builds a share of the index that candidates=best looks in"),
        (("method=project", "candidates=best", "shard=5/4"), "shard=5/4: must be the number of a task"),
        (("method=project", "candidates=best", "shard=1/2", "self_influence=true"), "leave self_influence out"),
        (("method=project", "method.side=0"), "method.side=0: must be at least 1"),
        (("method=project", "method.side=4", "budget=0.1"), "method.side=4: .* and so does budget=0.1"),
        (("method=project_paper", "method.side=4"), "and so does method.rule=paper"),
        (("method=project", "method.storage=float8"), "unknown storage 'float8'"),
        (("method=logra", "method.storage=float8"), "unknown storage 'float8'"),
        (("method=trackstar", "method.storage=float8"), "unknown storage 'float8'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(compose, keys, message):
    with pytest.raises(UserError, match=message):
        compose(*keys)


def test_storage_is_of_an_index_alone(problem, compose):
    with pytest.raises(UserError, match=r"method.storage=int8: .* add candidates=best"):
        compose(*SIDE, "method.storage=int8").attribute(problem)


def test_the_methods_that_are_named_are_those_that_keep_an_index():
    keep = set()
    for found in pkgutil.iter_modules(methods.__path__):
        for one in vars(importlib.import_module(f"tdaexp.methods.{found.name}")).values():
            if isinstance(one, type) and issubclass(one, Method) and one.indexed is not Method.indexed:
                keep.add(one.__module__.rpartition(".")[2])
    assert keep == set(INDEXED.replace(" or ", ", ").split(", "))


def test_labels(compose):
    assert compose(*SIDE).label == "project (factorised, 4 x 4 each)"
    assert compose(*SIDE, "method.storage=int8").label == "project (factorised, 4 x 4 each, int8)"
    assert compose("method=logra", "method.storage=int8").label == "logra (int8)"
    assert compose("method=trackstar", "method.storage=int8").label == "trackstar (int8)"
