"""Component products against explicit autograd gradients; resuming, memory, and what users can get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import VARIANTS, gradients_of, make_examples, products_oracle, relative_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdaexp.data.examples import Example, Examples
from tdaexp.gradients import products as products_module
from tdaexp.gradients.products import Products, component_products
from tdaexp.models.components import component_map
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError

PAIRS = np.array([[0, 1, 2], [3, -1, 5], [1, 1, 0], [5, 4, 2], [-1, -1, -1]])
NAMES = ("dot", "query_sq", "train_sq")


def run(model, train, queries, pairs, store, components=None, reduction="mean", pad_id=0, **options):
    sides = [gradients_of(model, side, components, pad_id, reduction=reduction) for side in (train, queries)]
    return {name: rows[:] for name, rows in component_products(*sides, pairs, store=store, **options).items()}


@pytest.fixture(scope="module")
def data():
    return make_examples(0, 6), make_examples(1, 5, prefix="q")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_autograd(models, variant, dtype, tolerance, data, tmp_path):
    """Dots and self-products of every component, several batches and blocks, padded."""
    model = models(variant, dtype)
    found = run(model, *data, PAIRS, tmp_path / "s", tokens_per_batch=30, cache_gb=1e-5)
    assert all(found[name].dtype == np.dtype(str(dtype).removeprefix("torch.")) for name in NAMES)
    errors = relative_errors(found, products_oracle(model, *data, PAIRS))
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("variant", ["olmo-tied", "gpt2-untied"])
def test_dense_pairs_and_sum_reduction(models, variant, data, tmp_path):
    model, pairs = models(variant), np.tile(np.arange(6), (5, 1))
    found = run(model, *data, pairs, tmp_path / "s", reduction="sum")
    errors = relative_errors(found, products_oracle(model, *data, pairs, "sum"))
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize(("tokens", "memory"), [(1, 2.0), (12, 1e-9), (1000, 1e-5), (1000, 2.0)])
def test_one_at_a_time_equals_all_at_once(models, tokens, memory, data, tmp_path):
    model = models("gpt_neox-tied")
    reference = run(model, *data, PAIRS, tmp_path / "reference", tokens_per_batch=40)
    found = run(model, *data, PAIRS, tmp_path / "s", tokens_per_batch=tokens, cache_gb=memory)
    assert max(relative_errors(found, reference).values()) < 1e-9


def test_a_subset_of_components(models, data, tmp_path):
    model = models("bloom-tied")
    whole = run(model, *data, PAIRS, tmp_path / "whole")
    names = ["norms", "layers.0.attn.v", "layers.1.mlp.down"]
    part = component_map(model).select(names)
    found = run(model, *data, PAIRS, tmp_path / "part", components=part)
    columns = [component_map(model).names.index(name) for name in part.names]
    wanted = {name: whole[name][..., columns] for name in NAMES}
    assert max(relative_errors(found, wanted).values()) < 1e-9


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(6)), st.permutations(range(5)), st.integers(1, 80), st.sampled_from([0, 7]))
def test_order_batching_and_padding_change_nothing(
    models, data, tmp_path_factory, train_order, query_order, tokens, pad_id
):
    """Permuting both lists permutes the products; how they were batched and padded does not show."""
    model, (train, queries) = models("llama-bias"), data
    place = np.argsort(train_order)
    pairs = np.where(PAIRS < 0, -1, place[PAIRS])[query_order]
    reference = run(model, train, queries, PAIRS, tmp_path_factory.mktemp("a") / "s")
    shuffled = Examples([train[k] for k in train_order]), Examples([queries[k] for k in query_order])
    store = tmp_path_factory.mktemp("b") / "s"
    found = run(model, *shuffled, pairs, store, tokens_per_batch=tokens, pad_id=pad_id)
    wanted = {name: reference[name][query_order] for name in NAMES}
    assert max(relative_errors(found, wanted).values()) < 1e-6


class Killed(Exception):
    """Stands for SIGKILL between two blocks."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_resumed_run_gives_the_same_bits(models, dtype, blocks, tmp_path, monkeypatch):
    """Stopped after some blocks and taken up with other memory, against a run that was left alone."""
    model, train, queries = models("olmo-tied", dtype), make_examples(2, 20), make_examples(3, 12, prefix="q")
    pairs = np.random.default_rng(4).integers(-1, 20, (12, 4))
    options = {"tokens_per_batch": 40, "cache_gb": 5e-5}
    straight = run(model, train, queries, pairs, tmp_path / "straight", **options)
    written = []

    def write(self, block, values, original=BlockStore.write):
        if len(written) == blocks:
            raise Killed
        original(self, block, values)
        written.append(block)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(BlockStore, "write", write)
        run(model, train, queries, pairs, tmp_path / "killed", **options)
    assert len(written) == blocks
    resumed = run(model, train, queries, pairs, tmp_path / "killed", tokens_per_batch=40, cache_gb=2.0)
    for name in NAMES:
        assert straight[name].tobytes() == resumed[name].tobytes(), name


def test_a_finished_store_is_read_without_the_model(models, data, tmp_path, monkeypatch):
    model = models("olmo-tied")
    first = run(model, *data, PAIRS, tmp_path / "s")
    monkeypatch.setattr(products_module.Products, "hold", lambda *arguments: pytest.fail("computed again"))
    second = run(model, *data, PAIRS, tmp_path / "s")
    assert all(first[name].tobytes() == second[name].tobytes() for name in NAMES)


def test_a_blocks_answers_count_in_its_memory(models, data):
    """Of many candidates they are most of it: 3 of 5 queries fit, or all without candidates."""
    work = Products(*(gradients_of(models("olmo-tied", torch.float32), side) for side in data), tokens_per_batch=100)
    many = np.tile(np.arange(6), (5, 20_000))
    answers = 2 * 4 * many.shape[1] * work.width  # dot and train_sq
    memory = 3 * (answers + work.held_bytes().max()) + 1
    assert sorted(len(block.members) for block in work.plan(many, memory)) == [2, 3]
    assert [len(block.members) for block in work.plan(many[:, :6], memory)] == [5]


def test_each_example_runs_once_when_memory_allows(models, data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(models("olmo-tied"), *data, PAIRS, tmp_path / "s")
    assert "forward-backward passes: 5 query, 6 training" in caplog.text
    assert "held: 14 of 15 components explicitly" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(models, data, tmp_path, value):
    """Token 20 occurs in one training example only; its embedding is broken."""
    model, (train, queries) = models("bloom-untied", torch.float32), data
    broken = Example("culprit", np.array([3, 20, 4]), np.array([False, False, True]), "")
    train = Examples([*train, broken])
    saved = model.transformer.word_embeddings.weight[20].clone()
    try:
        with torch.no_grad():
            model.transformer.word_embeddings.weight[20] = value
        pairs = np.array([[0, 6]] * 5)
        with pytest.raises(UserError, match=r"example 'culprit': the gradient of component 'lm_head' is nan"):
            run(model, train, queries, pairs, tmp_path / "s")
    finally:
        with torch.no_grad():
            model.transformer.word_embeddings.weight[20] = saved


def test_the_component_where_a_fault_begins_is_named(models, data, tmp_path):
    """The forward pass is fine; in the backward pass a gradient overflows in layer 1."""
    model, (train, queries) = models("gpt_neox-untied", torch.float32), data

    def overflow(module, arguments, output):
        if output.requires_grad:
            output.register_hook(lambda delta: delta * float("inf"))

    handle = model.gpt_neox.layers[1].mlp.dense_h_to_4h.register_forward_hook(overflow)
    try:
        with pytest.raises(UserError, match=r"example 'q\d': the gradient of component 'layers.1.mlp.up' is"):
            run(model, train, queries, PAIRS, tmp_path / "s")
    finally:
        handle.remove()


def test_examples_without_loss_are_named(models, data, tmp_path):
    train, queries = data
    silent = Example("silent", np.array([1, 2]), np.array([True, False]), "")
    with pytest.raises(UserError, match="query example 'silent' has no token with a loss"):
        run(models("olmo-tied"), train, Examples([silent]), PAIRS[:1], tmp_path / "s")
    with pytest.raises(UserError, match="training example 'silent' has no token with a loss"):
        run(models("olmo-tied"), Examples([silent]), queries, np.zeros((5, 1), int), tmp_path / "s")
    found = run(models("olmo-tied"), Examples([*train, silent]), queries, PAIRS, tmp_path / "unused")
    assert np.isfinite(found["query_sq"]).all()


def test_a_plan_of_another_run_is_refused(models, data, tmp_path):
    train, queries = data
    run(models("olmo-tied"), train, queries[:3], PAIRS[:3], tmp_path / "s")
    with pytest.raises(UserError, match="plan of another run"):
        run(models("olmo-tied"), train, queries, PAIRS, tmp_path / "s")


def test_candidates_must_fit_the_lists(models, data, tmp_path):
    with pytest.raises(UserError, match="one row per query"):
        run(models("olmo-tied"), *data, PAIRS[:2], tmp_path / "s")
    for wrong in (6, -2):
        with pytest.raises(UserError, match="outside 0 … 5"):
            run(models("olmo-tied"), *data, np.full((5, 1), wrong), tmp_path / "s")
