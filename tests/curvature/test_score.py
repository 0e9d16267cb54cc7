"""Pair scores against explicit gradients through the dense inverse; invariances; the gradient index; resuming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of, make_examples, oracle
from kronecker_oracle import samples_of

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.gradient_index import GradientIndex, index_bytes, indexed_scores
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.score import LayerPairs, Scoring, held_layer_bytes, pair_scores
from tdaexp.data.examples import Examples
from tdaexp.gradients.schedule import Block
from tdaexp.models.components import component_map
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.live_bytes import LiveBytes
from tdaexp.selection.parts import names_of

DAMPING = Damping(relative=0.2)
TRAIN, QUERIES = make_examples(3, 9, prefix="t"), make_examples(11, 5, prefix="q")
EVERY = np.tile(np.arange(9), (5, 1))
SOME = np.array([[0, 3, -1], [8, 1, 2], [4, -1, -1], [5, 6, 7], [0, 8, 2]])


def chosen(model, names=None):
    components = component_map(model)
    return layers_of(components.select(names or names_of(components, "blocks")))


@pytest.fixture(scope="module")
def fitted(models, tmp_path_factory):
    """Model, layers and factors of a tiny GPT-NeoX."""
    model = models("gpt_neox-untied")
    layers = chosen(model)
    store = tmp_path_factory.mktemp("factors") / "f"
    return model, layers, fit_factors(samples_of(model, layers, TRAIN, 40), FactorSettings(), store=store)


def sides_of(model, layers, train, queries, precondition=lambda name, gradient: gradient, query_rank=None):
    sides = [gradients_of(model, side, layers.map) for side in (train, queries)]
    return LayerPairs(*sides, layers, precondition, query_rank)


def score(
    fitted, folder, pairs=EVERY, train=TRAIN, queries=QUERIES, precondition=None, query_rank=None, index=None, **options
):
    model, layers, factors = fitted
    ready = precondition or (lambda name, gradient: factors.precondition(name, gradient, DAMPING))
    sides, options = sides_of(model, layers, train, queries, ready, query_rank), {"tokens_per_batch": 40, **options}
    if index is None:
        return pair_scores(sides, pairs, store=folder, **options)[:]
    return indexed_scores(sides, pairs, index=index, store=folder, **{"keep_gb": 1.0, **options})[:]


def explicit(fitted, pairs=EVERY, train=TRAIN, queries=QUERIES):
    """Scores [Q, C, K] from autograd gradients and inverses built from the eigenbasis as dense matrices."""
    model, layers, factors = fitted
    names = component_map(model).names
    left, right = oracle(model, queries), oracle(model, train)
    found = np.full((*pairs.shape, len(layers.components)), np.nan)
    for layer in layers.layers:
        one = factors[layer.name]
        basis = torch.kron(one.q_out, one.q_in)
        inverse = basis @ torch.diag(1 / (one.spectrum + 0.2 * one.spectrum.mean()).flatten()) @ basis.T
        members = [names.index(name) for name, _ in layer.members]
        for (q, c), t in np.ndenumerate(pairs):
            if t < 0:
                continue
            solved = inverse @ torch.cat([left[q][k] for k in members])
            parts = torch.split(solved, [len(left[q][k]) for k in members])
            for k, part, column in zip(members, parts, layers.columns(layer), strict=True):
                found[q, c, column] = float(part @ right[t][k])
    return found


@pytest.mark.parametrize("pairs", [EVERY, SOME], ids=["every pair", "candidates"])
def test_against_explicit_gradients(pairs, fitted, tmp_path):
    found = score(fitted, tmp_path / "s", pairs)
    wanted = explicit(fitted, pairs)
    assert (np.isnan(found) == (pairs < 0)[..., None]).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-10 * np.nanmax(np.abs(wanted)))


@pytest.mark.parametrize("change", [dict(tokens_per_batch=1), dict(tokens_per_batch=9999), dict(cache_gb=1e-9)])
def test_batches_padding_and_memory_do_not_matter(change, fitted, tmp_path):
    usual, other = score(fitted, tmp_path / "a", SOME), score(fitted, tmp_path / "b", SOME, **change)
    np.testing.assert_allclose(other, usual, rtol=1e-9, atol=1e-12)


def test_without_preconditioning_it_is_the_gradient_dot_product(fitted, tmp_path):
    model, layers, _ = fitted
    found = score(fitted, tmp_path / "s", precondition=lambda _, gradient: gradient)
    names = component_map(model).names
    left, right = oracle(model, QUERIES), oracle(model, TRAIN)
    for column, name in enumerate(layers.components.names):
        k = names.index(name)
        wanted = torch.stack([q[k] for q in left]) @ torch.stack([t[k] for t in right]).T
        np.testing.assert_allclose(found[..., column], wanted.numpy(), rtol=1e-9, atol=1e-12)


def test_much_damping_goes_to_the_dot_product(fitted, tmp_path):
    *_, factors = fitted
    plain = score(fitted, tmp_path / "a", precondition=lambda _, gradient: gradient)
    damped = score(fitted, tmp_path / "b", precondition=lambda n, g: factors.precondition(n, g, Damping(1e12)))
    np.testing.assert_allclose(damped * 1e12, plain, rtol=1e-6, atol=1e-9)
    assert (np.argsort(damped.sum(2), 1) == np.argsort(plain.sum(2), 1)).all()


def test_the_sum_over_components_is_the_whole(fitted, tmp_path):
    """q, k and v of a fused matrix are shares of the matrix's own score."""
    model, layers, factors = fitted
    found = score(fitted, tmp_path / "s").sum(2)
    names = component_map(model).names
    left, right = oracle(model, QUERIES), oracle(model, TRAIN)
    wanted = np.zeros(found.shape)
    for layer in layers.layers:
        members = [names.index(name) for name, _ in layer.members]
        q, t = (torch.stack([torch.cat([one[k] for k in members]) for one in side]) for side in (left, right))
        ready = factors.precondition(layer.name, q.view(-1, layer.outputs, layer.inputs), DAMPING)
        wanted += (ready.flatten(1) @ t.T).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9)


def test_scores_of_a_set_with_itself_are_symmetric_with_positive_self_influence(fitted, tmp_path):
    pairs = np.tile(np.arange(9), (9, 1))
    table = score(fitted, tmp_path / "all", pairs, queries=TRAIN)
    alone = score(fitted, tmp_path / "own", np.arange(9)[:, None], queries=TRAIN)
    np.testing.assert_allclose(np.diagonal(table).T, alone[:, 0], rtol=1e-9, atol=1e-12)
    total = table.sum(2)
    np.testing.assert_allclose(total, total.T, rtol=1e-9, atol=1e-10)
    assert (np.diag(total) > 0).all() and np.linalg.eigvalsh(total).min() > 0


@pytest.mark.parametrize("pairs", [EVERY, SOME], ids=["every pair", "candidates"])
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_queries(rank, pairs, fitted, tmp_path, monkeypatch):
    """Both ways of multiplying give the scores of the truncated gradients."""
    *_, factors = fitted

    def truncated(name, gradient):
        u, s, v = np.linalg.svd(factors.precondition(name, gradient, DAMPING).numpy(), full_matrices=False)
        return torch.from_numpy((u[..., :rank] * s[:, None, :rank]) @ v[:, :rank])

    wanted = score(fitted, tmp_path / "a", pairs, precondition=truncated)
    found = []
    for through_factors in (True, False):
        monkeypatch.setattr("tdaexp.curvature.contraction.low_rank_is_cheaper", lambda *_, way=through_factors: way)
        found.append(score(fitted, tmp_path / f"{through_factors}", pairs, query_rank=rank))
    for one in found:
        np.testing.assert_allclose(one, wanted, rtol=1e-7, atol=1e-9)
    assert np.nanmax(np.abs(wanted - score(fitted, tmp_path / "full", pairs))) > 1e-3


def test_queries_of_several_batches_are_held_once(models):
    model = models("gpt_neox-untied")
    layers, queries = chosen(model), make_examples(11, 24, prefix="q")
    sides = sides_of(model, layers, queries, queries)
    work = Scoring(sides.train, sides.queries, 4096, sides)

    def peak(count):
        with work.ready(), LiveBytes() as live:
            held = work.hold(Block([[query] for query in range(count)], []), pytest.fail, Deferred())
        assert len(held) == len(layers)
        return live.peak

    each = held_layer_bytes(layers, None, torch.float64)
    assert (work.held_bytes() == each).all()
    assert peak(24) - peak(2) < 1.1 * 22 * each


@pytest.mark.parametrize("rank", [None, 3])
def test_an_index_serves_other_queries(rank, fitted, tmp_path, monkeypatch):
    index = tmp_path / "index"
    first = score(fitted, tmp_path / "some", SOME, index=index, query_rank=rank)
    exact = score(fitted, tmp_path / "a", SOME, query_rank=rank)
    scale = np.nanmax(np.abs(exact), axis=(0, 1))
    assert 0 < np.nanmax(np.abs(first - exact) / scale) < 0.02
    assert np.corrcoef(first[SOME >= 0].sum(1), exact[SOME >= 0].sum(1))[0, 1] > 0.9999
    monkeypatch.setattr(GradientIndex, "fill", lambda self: None)  # nothing is left to run
    others = make_examples(12, 5, prefix="r")
    second = score(fitted, tmp_path / "others", queries=others, index=index, query_rank=rank)
    exact = score(fitted, tmp_path / "b", queries=others, query_rank=rank)
    assert np.corrcoef(second.sum(2).ravel(), exact.sum(2).ravel())[0, 1] > 0.9999


def test_the_index_has_the_stated_size(fitted, tmp_path):
    _, layers, _ = fitted
    index, size = tmp_path / "index", index_bytes(layers, len(TRAIN))
    with pytest.raises(UserError, match=r"takes .* GB; set method.keep_gb="):
        score(fitted, tmp_path / "s", index=index, keep_gb=(size - 1) / 1e9)
    score(fitted, tmp_path / "s", index=index, keep_gb=size / 1e9)
    stored = sum(one.stat().st_size for one in index.rglob("*") if one.is_file())
    metadata = sum(one.stat().st_size for one in index.rglob("zarr.json"))
    assert size <= stored - metadata <= 1.2 * size  # the last piece of an array is stored in full length


def test_a_copy_of_a_training_example_has_it_as_the_top_score(fitted, tmp_path):
    copies = Examples([*TRAIN][:4])
    scores = score(fitted, tmp_path / "s", np.tile(np.arange(9), (4, 1)), queries=copies).sum(2)
    own = scores[np.arange(4), np.arange(4)]
    assert (own > 0).all() and (own == scores.max(1)).all()


class Killed(BaseException):
    pass


@pytest.mark.long
@pytest.mark.parametrize("mode", ["ekfac", "kfac", "diagonal"])
def test_a_killed_fit_goes_on_with_the_same_bits(mode, models, tmp_path, monkeypatch):
    model = models("gpt_neox-untied", torch.float32)
    layers, settings = chosen(model), FactorSettings(mode, partitions=2, saves=3)
    real, counted, last = BlockStore.write, [0], [None]

    def write(store, block, values):
        if counted[0] == last[0]:
            raise Killed
        real(store, block, values)
        counted[0] += 1

    monkeypatch.setattr(BlockStore, "write", write)

    def run(folder):
        factors = fit_factors(samples_of(model, layers, TRAIN, 20), settings, store=tmp_path / folder)
        return {name: factors[name].spectrum for name in layers.names}, factors

    straight, _ = run("straight")
    total, counted[0] = counted[0], 0
    for stop in range(total):
        last[0] = counted[0] + 1
        with pytest.raises(Killed) if stop < total - 1 else _nothing():
            run("killed")
    resumed, factors = run("killed")
    assert counted[0] == total  # nothing was computed twice
    assert all(torch.equal(resumed[name], straight[name]) for name in layers.names)
    assert (factors.labels() >= 0).any()


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def test_modes_share_what_they_can(models, tmp_path, monkeypatch):
    model = models("gpt_neox-untied")
    layers = chosen(model)
    fit_factors(samples_of(model, layers, TRAIN), FactorSettings("ekfac"), store=tmp_path / "f")
    monkeypatch.setattr(BlockStore, "write", lambda *_: pytest.fail("computed again"))
    fit_factors(samples_of(model, layers, TRAIN), FactorSettings("kfac"), store=tmp_path / "f")


def test_two_models_must_have_the_same_layers(models, fitted, tmp_path):
    model, layers, _ = fitted
    other = models("bloom-tied")
    sides = gradients_of(model, TRAIN, layers.map), gradients_of(other, QUERIES, chosen(other).map)
    with pytest.raises(UserError, match=r"the two models differ in '"):
        pair_scores(LayerPairs(*sides, layers, lambda n, g: g), EVERY, store=tmp_path / "s")
