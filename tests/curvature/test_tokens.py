"""Tokens' shares against autograd, which gives every position a weight matrix of its own, in one stage and in two."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of, make_examples

from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.curvature.tokens import TokenScoring, pair_tokens
from tdaexp.models.components import component_map
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.selection.parts import names_of

TRAIN, QUERIES = make_examples(3, 9, prefix="t"), make_examples(11, 12, prefix="q")
MODULES = {
    "layers.0.attn.o": "gpt_neox.layers.0.attention.dense",
    "layers.1.mlp.down": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "lm_head": "lm_head",
}


def chosen(model, names=None):
    components = component_map(model)
    return layers_of(components.select(names or names_of(components, "blocks")))


def inverse(layers, seed):
    """A symmetric positive operator that no other seed's commutes with: G ↦ L G R."""
    generator = torch.Generator().manual_seed(seed)

    def positive(size):
        root = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return root @ root.T / size + torch.eye(size, dtype=torch.float64)

    sides = {layer.name: (positive(layer.outputs), positive(layer.inputs)) for layer in layers.layers}
    return lambda name, gradient: sides[name][0] @ gradient @ sides[name][1]


@pytest.fixture(scope="module")
def two_stages(models):
    """Models before and after fine-tuning, and for some names: sides with both inverses, and both in reverse."""
    before = models("gpt_neox-untied")
    after = copy.deepcopy(before)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def make(names=None, rank=None):
        layers = chosen(before, names)
        first, second = inverse(layers, 1), inverse(layers, 2)
        sides = gradients_of(before, TRAIN, layers.map), gradients_of(after, QUERIES, chosen(after, names).map)
        pairs = LayerPairs(*sides, layers, lambda n, g: first(n, second(n, g)), rank)
        return pairs, lambda n, g: second(n, first(n, g))

    return make


def per_position(model, example):
    """Gradients [T, O, I + 1] of an example's mean loss by weight matrix, one for each position."""
    extra, handles = {}, []
    for name, path in MODULES.items():
        module = model.get_submodule(path)
        columns = module.in_features + (module.bias is not None)
        own = torch.zeros(example.length, module.out_features, columns, dtype=torch.float64, requires_grad=True)
        extra[name] = own

        def hook(module, given, output, own=own):
            (inputs,) = given
            if module.bias is not None:
                inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
            return output + torch.einsum("bti,toi->bto", inputs, own)

        handles.append(module.register_forward_hook(hook))
    ids = torch.from_numpy(example.tokens)
    with torch.enable_grad():
        logs = torch.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
        loss = -torch.stack([logs[t - 1, ids[t]] for t in np.flatnonzero(example.loss_mask)]).mean()
        values = torch.autograd.grad(loss, list(extra.values()))
    for handle in handles:
        handle.remove()
    return dict(zip(extra, values, strict=True))


@pytest.mark.parametrize(("example", "query"), [(0, 0), (5, 3)])
def test_each_share_against_autograd_and_both_inverses_in_their_order(example, query, two_stages):
    """The oracle applies P to each of the query's positions; what is tested applies its adjoint to the other side."""
    sides, reverse = two_stages(list(MODULES))
    both = sides.precondition
    found = TokenScoring(sides, reverse).of_query(query, [example])[0]
    left, right = per_position(sides.queries.model, QUERIES[query]), per_position(sides.train.model, TRAIN[example])
    wanted_train = sum((both(name, left[name].sum(0)) * right[name]).sum((1, 2)) for name in MODULES)
    wanted_query = sum((both(name, left[name]) * right[name].sum(0)).sum((1, 2)) for name in MODULES)
    np.testing.assert_allclose(found.train, wanted_train.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.query, wanted_query.numpy(), rtol=1e-8, atol=1e-10)
    wrong = TokenScoring(sides, both).of_query(query, [example])[0]
    assert abs(wrong.query.sum() - found.query.sum()) > 1e-3 * abs(found.query.sum())  # the order counts


@pytest.mark.parametrize("names", [None, ["lm_head", "layers.1.mlp.down"]])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_shares_add_up_to_the_score(rank, names, two_stages, tmp_path):
    sides, reverse = two_stages(names, rank)
    pairs = np.tile([[4, 0, -1], [8, 1, 5]], (6, 1))
    scores = pair_scores(sides, pairs, store=tmp_path / "s")[:].sum(2)
    found = pair_tokens(TokenScoring(sides, reverse), pairs, store=tmp_path / "t")
    for shares, examples in zip(found, (TRAIN, QUERIES), strict=True):
        assert (np.isnan(shares).all(2) == (pairs < 0)).all()
        there = pairs >= 0
        np.testing.assert_allclose(np.nansum(shares, 2)[there], scores[there], rtol=1e-9, atol=1e-10)
        index = pairs if examples is TRAIN else np.broadcast_to(np.arange(12)[:, None], pairs.shape)
        assert (np.isfinite(shares).sum(2)[there] == examples.lengths[index[there]]).all()
    # Nothing behind the last position that predicts a token, and not all in one place before it.
    last = np.flatnonzero(TRAIN[4].loss_mask[1:])[-1]
    own = found[0][0, 0]
    assert (np.nan_to_num(own[last + 1 :]) == 0).all() and np.count_nonzero(np.nan_to_num(own)) >= 1 + (names is None)


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_with_the_same_bits(two_stages, tmp_path, monkeypatch):
    scoring, pairs = TokenScoring(*two_stages(["layers.1.mlp.down"])), np.tile([[4, 0]], (12, 1))
    straight = pair_tokens(scoring, pairs, store=tmp_path / "straight")
    real = BlockStore.write

    def write(store, block, values):
        if block == 1:
            raise Killed
        real(store, block, values)

    monkeypatch.setattr(BlockStore, "write", write)
    with pytest.raises(Killed):
        pair_tokens(scoring, pairs, store=tmp_path / "killed")
    monkeypatch.setattr(BlockStore, "write", lambda store, block, values: real(store, {1: 1}[block], values))
    resumed = pair_tokens(scoring, pairs, store=tmp_path / "killed")  # the first block is not computed again
    for one, other in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(one, other)
