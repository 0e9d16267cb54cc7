"""Explicit vectors: their layout is that of materialised gradients, and streaming dot products are plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import VARIANTS, autograd_gradients, gradients_of, make_examples, oracle

from tdaexp.gradients.vector_products import gradient_vectors, vector_products
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import component_map
from tdaexp.models.discovery import discovered

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def selected(model):
    """Every component but one of a fused or shared set, so that some rows of a matrix belong to none."""
    whole = component_map(model)
    return whole.select([name for name in whole.names if name != "layers.0.attn.k"])


@every_variant
def test_gradients_as_vectors_are_what_autograd_gives(models, variant):
    model = models(variant)
    examples = make_examples(1, 5)
    found = gradient_vectors(gradients_of(model, examples, reduction="sum"), list(range(5)), tokens_per_batch=30)
    wanted = torch.stack([torch.cat(row) for row in oracle(model, examples, "sum")])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))


@every_variant
def test_a_vector_becomes_a_direction_in_parameter_space_and_back(models, variant):
    model = models(variant)
    space = VectorSpace(model, selected(model))
    vectors = torch.randn(2, space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = space.tangents(vectors)
    assert torch.equal(space.vectors(directions), vectors)
    assert all(torch.isfinite(value).all() for value in directions.values())
    norms = sum(value.flatten(1).square().sum(1) for value in directions.values())
    torch.testing.assert_close(norms, vectors.square().sum(1))


def test_a_model_that_is_one_layer_itself_has_a_vector_space():
    layer = torch.nn.Linear(3, 2)
    space = VectorSpace(layer, discovered(layer))
    assert {name: value.shape for name, value in space.parameters().items()} == {"weight": (2, 3), "bias": (2,)}
    vectors = torch.randn(2, space.size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.vectors(space.tangents(vectors)), vectors)


@every_variant
def test_the_inner_product_of_a_gradient_and_a_direction_is_that_of_the_vectors(models, variant):
    model = models(variant)
    components, (example,) = selected(model), make_examples(3, 1)
    space = VectorSpace(model, components)
    vector = torch.randn(1, space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model.requires_grad_(True)
    gradients = autograd_gradients(model, example)
    model.requires_grad_(False)
    wanted = sum(float((gradients[name] * value[0]).sum()) for name, value in space.tangents(vector).items())
    (mine,) = gradient_vectors(gradients_of(model, make_examples(3, 1), components), [0])
    assert float(mine @ vector[0]) == pytest.approx(wanted, rel=1e-5)


@every_variant
@pytest.mark.parametrize(("cache_gb", "chunk"), [(1e-9, 1 << 28), (1.0, 1 << 28), (1.0, 1)])
def test_products_with_vectors_by_component(models, variant, cache_gb, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("tdaexp.gradients.vector_products.CHUNK_BYTES", chunk)  # the last one: an example at a time
    model = models(variant)
    train, components = make_examples(4, 7), component_map(model)
    pairs = np.array([[0, 3, -1], [6, 2, 1], [-1, -1, -1], [5, 3, 0]])
    space = VectorSpace(model, components)
    vectors = torch.randn(4, space.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = vector_products(
        gradients_of(model, train, components, reduction="sum"),
        pairs,
        lambda queries: vectors[queries],
        store=tmp_path / "store",
        tokens_per_batch=40,
        cache_gb=cache_gb,
    )
    gradients = oracle(model, train, "sum")
    for (query, column), index in np.ndenumerate(pairs):
        if index < 0:
            assert np.isnan(found[query, column]).all()
            continue
        wanted = [float(vectors[query, place] @ g) for place, g in zip(space.slices, gradients[index], strict=True)]
        np.testing.assert_allclose(found[query, column], wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
