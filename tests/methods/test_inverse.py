"""Influence by conjugate gradients, LiSSA and Arnoldi on a language model, against the dense inverse in float64."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from dense_ggn import dense_ggn
from tiny_problem import PARAPHRASED, TRAIN, explicit_gradients, join

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

NAMES = ["layers.0.attn.q", "layers.1.attn.v"]
FEW = [f"method.components=[{','.join(NAMES)}]", "method.queries=null"]
TIGHT = ["method.tolerance=1e-5", "method.iterations=200"]  # the norms of this model are float32 in any type


@pytest.fixture(scope="module")
def exact(make_problem, tmp_path_factory):
    """A float64 problem, its dense GGN, and the gradients of queries and training examples."""
    few = {"paraphrased": [one for one in PARAPHRASED if one.truth[0] in ("t0", "t3")]}
    cache = tmp_path_factory.mktemp("cache")
    problem = make_problem(cache, train=TRAIN[:4], queries=few, candidates=3, dtype=torch.float64)
    model = problem.loaded.model
    dense = dense_ggn(model, problem.components(NAMES), problem.train)
    sides = [
        [join(one, NAMES) for one in explicit_gradients(problem.loaded, side)]
        for side in (problem.queries, problem.train)
    ]
    return problem, dense, torch.stack(sides[0]), torch.stack(sides[1])


def wanted_scores(problem, inverse, queries, train):
    """Scores [Q, C, 2] by component from explicit matrices."""
    solved = queries @ inverse
    parts = torch.stack([solved[:, :256] @ train[:, :256].T, solved[:, 256:] @ train[:, 256:].T], dim=2).numpy()
    return np.take_along_axis(parts, problem.pairs[:, :, None], axis=1)


def assert_near(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.long
@pytest.mark.parametrize("own", ["none", "ekfac", "arnoldi method.arnoldi_steps=20"])
def test_scores_are_those_of_the_dense_inverse(exact, compose, own):
    problem, dense, queries, train = exact
    keys = f"method.preconditioner={own}".split()
    found = compose("method=cg", *FEW, *TIGHT, "method.damping=0.1", *keys).attribute(problem)
    inverse = torch.linalg.inv(dense + 0.1 * torch.eye(512, dtype=torch.float64))
    assert_near(found["influence"].values, wanted_scores(problem, inverse, queries, train))
    assert found.attrs["converged"] is True and found.attrs["residual"] <= 1.1e-5
    assert found.attrs["damping"] == 0.1 and found.attrs["curvature_examples"] == len(problem.train)
    assert list(found["component"].values) == NAMES


PARTS = ["layers.0.attn.q", "layers.0.attn.k", "layers.0.mlp.up", "layers.1.attn.v"]
BLOCKS = {
    "matrix": [["layers.0.attn.q"], ["layers.0.attn.k"], ["layers.0.mlp.up"], ["layers.1.attn.v"]],
    "joint": [["layers.0.attn.q", "layers.0.attn.k"], ["layers.0.mlp.up"], ["layers.1.attn.v"]],
    "layer": [["layers.0.attn.q", "layers.0.attn.k", "layers.0.mlp.up"], ["layers.1.attn.v"]],
}


@pytest.fixture(scope="module")
def of_parts(exact):
    """The dense GGN over `PARTS`, and gradients of queries and training examples, by component."""
    problem = exact[0]
    dense = dense_ggn(problem.loaded.model, problem.components(PARTS), problem.train)
    sides = [explicit_gradients(problem.loaded, side) for side in (problem.queries, problem.train)]
    return dense, *([torch.stack([one[name].flatten() for one in side]) for name in PARTS] for side in sides)


@pytest.mark.long
@pytest.mark.parametrize("blocks", BLOCKS)
def test_blocks_are_those_of_the_dense_matrix(exact, of_parts, compose, blocks):
    """Each diagonal block is inverted alone, and what lies between them left out."""
    problem, (dense, queries, train) = exact[0], of_parts
    keys = [f"method.components=[{','.join(PARTS)}]", "method.queries=null", f"method.curvature_blocks={blocks}"]
    found = compose("method=cg", *keys, *TIGHT, "method.damping=0.1", "method.preconditioner=none").attribute(problem)
    ends = np.cumsum([0, *(one.shape[1] for one in queries)])
    kept = torch.zeros_like(dense)
    for block in BLOCKS[blocks]:
        places = torch.cat([torch.arange(ends[k], ends[k + 1]) for k in map(PARTS.index, block)])
        kept[places[:, None], places] = dense[places[:, None], places]
    inverse = torch.linalg.inv(kept + 0.1 * torch.eye(len(kept), dtype=torch.float64))
    solved = (torch.cat(queries, 1) @ inverse).split([one.shape[1] for one in queries], 1)
    parts = np.stack([(own @ one.T).numpy() for own, one in zip(solved, train, strict=True)], axis=2)
    assert_near(found["influence"].values, np.take_along_axis(parts, problem.pairs[:, :, None], axis=1))
    assert found["component"].values.tolist() == PARTS and found["residual"].dims == ("query",)
    assert found.attrs["converged"] is True


def test_relative_damping_is_that_of_all_blocks_together(exact, compose):
    keys = [*FEW, "method.relative_damping=2.0", "method.iterations=1", "method.preconditioner=none"]
    whole = compose("method=cg", *keys).attribute(exact[0])
    blocks = compose("method=cg", *keys, "method.curvature_blocks=matrix").attribute(exact[0])
    assert blocks.attrs["damping"] == whole.attrs["damping"]


@pytest.mark.long
def test_relative_damping_is_a_share_of_the_mean_eigenvalue(exact, compose):
    problem, dense, _, _ = exact
    found = compose("method=cg", *FEW, "method.relative_damping=2.0", "method.iterations=1").attribute(problem)
    assert found.attrs["damping"] == pytest.approx(2 * float(dense.trace()) / 512, rel=0.3)  # of eight random vectors


@pytest.mark.long
def test_lissa_is_the_dense_inverse_where_every_batch_is_the_whole(exact, compose):
    problem, dense, queries, train = exact
    keys = ["method.damping=20", "method.batch_size=4", "method.depth=100"]
    found = compose("method=lissa", *FEW, *keys).attribute(problem)
    inverse = torch.linalg.inv(dense + 20 * torch.eye(512, dtype=torch.float64))
    assert_near(found["influence"].values, wanted_scores(problem, inverse, queries, train), 1e-4)


@pytest.mark.long
def test_cg_with_and_without_a_preconditioner_agree(exact, compose):
    """At the same residual, whatever the way there."""
    none, ekfac = (
        compose("method=cg", *FEW, *TIGHT, "method.damping=0.1", f"method.preconditioner={own}").attribute(exact[0])
        for own in ("none", "ekfac")
    )
    assert none.attrs["converged"] and ekfac.attrs["converged"]
    assert_near(ekfac["influence"].values, none["influence"].values, 2e-5)


def test_over_all_examples_the_factors_are_those_of_ekfac(make_problem, compose, tmp_path):
    problem = make_problem(tmp_path)
    compose("method=ekfac", FEW[0]).attribute(problem)
    (fitted,) = [path for path in problem.stores if path.parent.name == "factors"]
    for count, shared in (("null", True), ("4", False)):
        again = make_problem(tmp_path)
        keys = [f"method.examples={count}", "method.iterations=1", "method.damping=1.0", "method.queries=1"]
        compose("method=cg", "method.preconditioner=ekfac", FEW[0], *keys).attribute(again)
        (found,) = [path for path in again.stores if path.parent.name == "factors"]
        assert (found == fitted) is shared


@pytest.mark.long
def test_astra_is_the_dense_inverse_where_every_batch_is_the_whole(exact, compose):
    problem, dense, queries, train = exact
    keys = ["method.damping=50", "method.batch_size=4", "method.steps=100", "method.tolerance=1e-5"]
    found = compose("method=astra", *FEW, *keys).attribute(problem)
    inverse = torch.linalg.inv(dense + 50 * torch.eye(512, dtype=torch.float64))
    assert_near(found["influence"].values, wanted_scores(problem, inverse, queries, train), 1e-4)
    assert found.attrs["converged"] is True and found.attrs["residual"] <= 1.1e-5


def test_astra_that_has_not_converged_is_marked(exact, compose, caplog):
    keys = ["method.damping=0.1", "method.batch_size=2", "method.steps=3", "method.tolerance=1e-4"]
    found = compose("method=astra", *FEW, *keys).attribute(exact[0])
    assert found.attrs["converged"] is False and found.attrs["label"].endswith(", not converged")
    assert "ASTRA: 2 queries have not converged (tolerance 0.0001)" in caplog.text


def test_lissa_that_diverges_says_so(exact, compose):
    problem = exact[0]
    with pytest.raises(UserError, match=r"LiSSA diverges .*set method.scale="):
        compose("method=lissa", *FEW, "method.damping=0.01", "method.scale=0.01").attribute(problem)


def test_arnoldi_is_the_inverse_in_the_span_of_the_dominant_eigenvectors(exact, compose):
    problem, dense, queries, train = exact
    found = compose("method=arnoldi", *FEW, "method.damping=0.01", "method.steps=60", "method.rank=10").attribute(
        problem
    )
    values, vectors = torch.linalg.eigh(dense)
    values, vectors = values[-10:], vectors[:, -10:]
    assert_near(
        found["influence"].values,
        wanted_scores(problem, vectors @ torch.diag(1 / (values + 0.01)) @ vectors.T, queries, train),
    )


@pytest.mark.long
def test_with_much_damping_all_rank_as_the_dot_product(exact, compose):
    problem = exact[0]
    dot = compose("method=dot", FEW[0]).attribute(problem)["influence"].values
    for name, keys in (("cg", TIGHT), ("lissa", ["method.depth=3", "method.scale=1.01e6"])):
        found = compose(f"method={name}", *FEW, *keys, "method.damping=1e6").attribute(problem)["influence"].values
        assert_near(1e6 * found, dot, 1e-4)


def test_what_has_not_converged_is_marked(problem, compose, caplog):
    keys = ["method.damping=1e-4", "method.iterations=2", "method.tolerance=1e-6", "method.preconditioner=none"]
    with caplog.at_level(logging.WARNING):
        found = compose("method=cg", *FEW, *keys).attribute(problem)
    assert found.attrs["converged"] is False and not found["converged"].any()
    assert (found["residual"] > 1e-6).all() and (found["iterations"] == 2).all()
    assert "12 queries have not converged (tolerance 1e-06)" in caplog.text


@pytest.mark.parametrize("name", ["cg", "arnoldi", "trak"])
def test_the_log_tells_which_part_of_the_model_is_looked_at(name, problem, compose, caplog):
    keys = {"cg": [*FEW, "method.iterations=1", "method.preconditioner=none", "method.damping=1.0"]}
    keys |= {"arnoldi": [*FEW, "method.steps=1", "method.rank=1"], "trak": ["method.dimensions=4"]}
    with caplog.at_level(logging.INFO):
        compose(f"method={name}", *keys[name], "method.components=[layers.1.mlp.up]").attribute(problem)
    size = problem.components(["layers.1.mlp.up"]).components[0].size
    assert f"{name}: attributed {size:,} of" in caplog.text


@pytest.mark.long
def test_a_duplicated_training_example_is_positive_and_on_top(make_problem, compose, tmp_path):
    twin = dataclasses.replace(TRAIN[4], id="twin")
    copy = Record("copy", TRAIN[4].prompt, TRAIN[4].completion, ("t4",))
    problem = make_problem(tmp_path, train=[*TRAIN[2:7], twin], queries={"copies": [copy]}, candidates=6)
    scores = influence.dense(compose("method=cg", "method.damping=1.0", *TIGHT[1:]).attribute(problem)).isel(query=0)
    assert scores.sel(train="t4") == pytest.approx(float(scores.sel(train="twin")), rel=1e-4)
    others = scores.drop_sel(train=["t4", "twin"])
    assert float(scores.sel(train="twin")) > max(0.0, float(others.max()))


def test_only_some_queries_are_answered_whatever_their_order(problem, compose):
    keys = ["method.damping=1.0", "method.preconditioner=none", "method.iterations=3"]
    method = compose("method=cg", "method.queries=2", *keys)
    found = method.attribute(problem)
    assert [list(found["query_set"].values).count(name) for name in ("paraphrased", "generated")] == [2, 2]
    assert set(found["query"].values) < set(problem.queries.ids)
    whole = compose("method=cg", "method.queries=null", *keys)
    same = whole.attribute(problem).sel(query=found["query"])
    np.testing.assert_allclose(found["influence"], same["influence"], rtol=1e-3, atol=1e-5)


def test_the_label_tells_what_is_not_usual(compose):
    assert compose("method=cg").label == "cg"
    assert (
        compose("method=cg", "method.damping=1e-4", "method.iterations=7").label == "cg (damping=0.0001, iterations=7)"
    )
    assert compose("method=cg", "method.damping=0.1", "method.examples=null").label == "cg (damping=0.1, examples=all)"
    assert compose("method=lissa", "method.batch_size=4").label == "lissa (batch_size=4)"
    assert compose("method=cg", "method.measurement=logit_margin").label == "cg (measurement=logit_margin)"
    assert compose("method=arnoldi", "method.part=mlp", FEW[0]).label == "arnoldi (part=mlp, 2 components)"


def test_keys_that_make_no_sense(compose):
    for keys, message in (
        ("method.damping=0", r"method.damping=0.0: must be above 0"),
        ("method.queries=0", r"method.queries=0: must be at least 1, or null"),
        ("method.part=block", r"unknown part 'block'; did you mean 'blocks'"),
        ("method.tolerance=0", r"method.tolerance=0.0: must be above 0"),
        ("method.preconditioner=ekfca", r"unknown preconditioner 'ekfca'; did you mean 'ekfac'"),
        ("method.deflate=10", r"deflate"),
    ):
        with pytest.raises(UserError, match=message):
            compose("method=cg", keys)
    with pytest.raises(UserError, match=r"method.rank=9: must lie between 1 and method.steps=5"):
        compose("method=arnoldi", "method.steps=5", "method.rank=9")
    with pytest.raises(UserError, match=r"method.depth=0: must be at least 1"):
        compose("method=lissa", "method.depth=0")
