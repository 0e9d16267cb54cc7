"""Products of factors against products of the explicit gradients that they stand for."""

from __future__ import annotations

import pytest
import torch

from tdaexp.gradients import dots, pairs
from tdaexp.gradients.dots import (
    cross_dots,
    linear_gram,
    linear_materialised,
    pair_dots,
    self_dots,
    shared_inputs,
)
from tdaexp.gradients.factors import EmbeddingFactors, LinearFactors, TiedFactors, VectorFactors, compact
from tdaexp.gradients.pairs import Pairs, products_of_rows

VOCABULARY, WIDTH = 9, 5


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def batch(examples: int, positions: int, dtype=torch.float64):
    """Factors of every kind: q, k, v with one input (k with a bias), one more, embedding, tied, norms."""
    shared = random(examples, positions, WIDTH, dtype=dtype)
    linear = [LinearFactors(shared, random(examples, positions, o, dtype=dtype), o == 3) for o in (4, 3, 6)]
    ids = torch.randint(0, VOCABULARY, (examples, positions))
    embedding = EmbeddingFactors(ids, random(examples, positions, WIDTH, dtype=dtype), VOCABULARY)
    head = LinearFactors(random(examples, 2, WIDTH, dtype=dtype), random(examples, 2, VOCABULARY, dtype=dtype), False)
    other = LinearFactors(
        random(examples, positions, 7, dtype=dtype), random(examples, positions, 2, dtype=dtype), True
    )
    return [
        *linear,
        other,
        embedding,
        TiedFactors(embedding, head),
        VectorFactors(random(examples, 11, dtype=dtype)),
    ]


def explicit(left, right, chosen: Pairs):
    columns = [
        (a.materialise()[chosen.left] * b.materialise()[chosen.right]).sum(1) for a, b in zip(left, right, strict=True)
    ]
    return torch.stack(columns, dim=1)


SPARSE = Pairs(torch.tensor([0, 3, 3, 1]), torch.tensor([2, 0, 4, 2]))
DENSE = Pairs(torch.arange(4).repeat_interleave(5), torch.arange(5).repeat(4))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


@pytest.mark.parametrize("chosen", [SPARSE, DENSE])
def test_pair_dots_equal_dots_of_explicit_gradients(chosen):
    left, right = batch(4, 6), batch(5, 8)
    torch.testing.assert_close(pair_dots(left, right, chosen), explicit(left, right, chosen))


@pytest.mark.parametrize("chosen", [SPARSE, DENSE])
def test_both_forms_agree(chosen):
    left, right = batch(4, 6)[:3], batch(5, 8)[:3]
    gram = linear_gram(left, right, chosen)
    materialised = torch.stack([linear_materialised(a, b, chosen) for a, b in zip(left, right, strict=True)], dim=1)
    torch.testing.assert_close(gram, materialised)
    torch.testing.assert_close(gram, explicit(left, right, chosen))


def test_the_cheaper_form_is_taken():
    """Few positions: Gram. Many positions for small matrices, or many pairs of few examples: materialised."""
    wide = [LinearFactors(random(2, 3, 50), random(2, 3, 60), False)]
    long = [LinearFactors(random(2, 90, 5), random(2, 90, 6), False)]
    one = Pairs(torch.tensor([0]), torch.tensor([1]))
    every = Pairs(torch.arange(40).repeat_interleave(40), torch.arange(40).repeat(40))
    many = [LinearFactors(random(40, 8, 20), random(40, 8, 20), False)]
    assert dots.gram_cost(wide, wide, one) < dots.materialised_cost(wide, list(wide), one)
    assert dots.gram_cost(long, long, one) > dots.materialised_cost(long, list(long), one)
    assert dots.gram_cost(many, many, every) > dots.materialised_cost(many, list(many), every)
    assert dots.gram_cost(many, many, one) < dots.materialised_cost(many, list(many), one)
    assert dots.gram_cost(wide, wide, one) == 1 * 3 * 3 * (50 + 60)


def test_the_choice_is_used(monkeypatch):
    left, right = (
        [LinearFactors(random(2, 3, 50), random(2, 3, 60), False)],
        [LinearFactors(random(2, 3, 50), random(2, 3, 60), False)],
    )
    monkeypatch.setattr(dots, "linear_materialised", None)
    pair_dots(left, right, Pairs(torch.tensor([0]), torch.tensor([1])))
    long = [LinearFactors(random(2, 90, 5), random(2, 90, 6), False)]
    with pytest.raises(TypeError):
        pair_dots(long, long, Pairs(torch.tensor([0]), torch.tensor([1])))


def test_self_dots_are_squared_norms():
    factors = batch(4, 6)
    squares = torch.stack([one.materialise().square().sum(1) for one in factors], dim=1)
    torch.testing.assert_close(self_dots(factors), squares)
    torch.testing.assert_close(self_dots([compact(one) for one in factors]), squares)
    torch.testing.assert_close(self_dots(factors[-1:]), squares[:, -1:])


def test_explicit_and_factored_forms_may_meet():
    left, right = batch(4, 6), batch(5, 8)
    mixed = [VectorFactors(one.materialise()) if isinstance(one, LinearFactors) else one for one in right]
    partly = [mixed[0], *right[1:]]
    torch.testing.assert_close(pair_dots(left, mixed, SPARSE), explicit(left, right, SPARSE))
    torch.testing.assert_close(pair_dots(mixed, mixed, SPARSE), explicit(right, right, SPARSE))
    torch.testing.assert_close(pair_dots(left, partly, SPARSE), explicit(left, right, SPARSE))


@pytest.mark.parametrize("chosen", [SPARSE, DENSE])
def test_small_chunks_change_nothing(monkeypatch, chosen):
    left, right = batch(4, 6), batch(5, 8)
    whole = pair_dots(left, right, chosen)
    materialised = linear_materialised(left[0], right[0], chosen)
    monkeypatch.setattr(pairs, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(dots, "FORMED_BYTES", 1)
    monkeypatch.setattr(pairs, "DENSE", 1)
    torch.testing.assert_close(pair_dots(left, right, Pairs(chosen.left, chosen.right)), whole)
    torch.testing.assert_close(linear_materialised(left[0], right[0], Pairs(chosen.left, chosen.right)), materialised)


def test_shared_inputs_are_grouped_by_tensor():
    assert shared_inputs(batch(2, 3)) == [[0, 1, 2], [3], [4], [5], [6]]


def test_tied_embedding_has_cross_terms():
    """The gradient of a tied matrix is the sum of both uses, so its products have four terms."""
    left, right = batch(4, 6)[5], batch(5, 8)[5]
    cross = (left.embedding.materialise()[SPARSE.left] * right.head.materialise()[SPARSE.right]).sum(1)
    assert cross.abs().min() > 1e-3
    torch.testing.assert_close(cross_dots(left.embedding, right.head, SPARSE), cross)


def test_padding_adds_nothing():
    short = batch(4, 6)
    long = [
        LinearFactors(_pad(one.inputs, 1.0), _pad(one.deltas, 0.0), one.bias) if isinstance(one, LinearFactors) else one
        for one in short
    ]
    embedding = short[4]
    ids = torch.nn.functional.pad(embedding.ids, (0, 3), value=int(embedding.ids[0, 0]))
    long[4] = EmbeddingFactors(ids, _pad(embedding.deltas, 0.0), VOCABULARY)
    torch.testing.assert_close(pair_dots(long[:5], long[:5], SELF), pair_dots(short[:5], short[:5], SELF))


SELF = Pairs(torch.tensor([0, 1, 3]), torch.tensor([2, 2, 0]))


def _pad(values, value):
    return torch.nn.functional.pad(values, (0, 0, 0, 3), value=value)


def test_bfloat16_factors_are_multiplied_in_float32():
    left, right = batch(4, 6, torch.bfloat16), batch(5, 8, torch.bfloat16)
    left[-1], right[-1] = VectorFactors(left[-1].gradient.float()), VectorFactors(right[-1].gradient.float())
    found = pair_dots(left, right, SPARSE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, explicit(left, right, SPARSE), rtol=1e-4, atol=1e-4)


def test_factors_of_different_components_are_refused():
    factors = batch(2, 3)
    with pytest.raises(TypeError, match="different components"):
        pair_dots([factors[4]], [factors[6]], Pairs(torch.tensor([0]), torch.tensor([1])))


def test_products_of_rows_far_from_dense():
    """Many rows and few pairs: cut into parts so that not all n x m products are taken."""
    g, h = random(300, 4), random(300, 4)
    chosen = Pairs(torch.arange(300), torch.arange(300).flip(0))
    assert len(chosen.dense) > 1
    torch.testing.assert_close(products_of_rows(g, h, chosen), (g * h.flip(0)).sum(1))


def test_compact_holds_the_gradient_where_it_is_small():
    small = compact(LinearFactors(random(2, 8, 4), random(2, 8, 4), True))
    assert isinstance(small, VectorFactors) and small.gradient.shape == (2, 4 * 5)
    large = LinearFactors(random(2, 2, 40), random(2, 2, 40), False)
    assert compact(large) is large
