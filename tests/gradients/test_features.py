"""Sketches made inside the backward pass against sketches of explicit autograd gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of, make_examples, oracle

from tdaexp.data.examples import Example, Examples
from tdaexp.gradients import features as features_module
from tdaexp.gradients.features import component_features
from tdaexp.gradients.projection import make_sketch
from tdaexp.models.components import component_map
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError


def sketches(components, kind):
    return {c.name: make_sketch(kind, c.name, c.matrix, min(12, c.size), seed=5) for c in components.components}


def run(model, examples, kind, store, **options):
    gradients = gradients_of(model, examples)
    found = component_features(gradients, sketches(gradients.components, kind), store=store, **options)
    rows = found.rows(found.place)
    return {name: rows[:, column] for name, column in found.columns.items()}


@pytest.mark.parametrize("kind", ["factorised", "srht", "sjlt"])
@pytest.mark.parametrize("variant", ["olmo-tied", "bloom-tied", "gpt2-tied", "llama-bias"])
def test_equal_to_sketches_of_explicit_gradients(models, variant, kind, tmp_path):
    model, examples = models(variant), make_examples(1, 5)
    found = run(model, examples, kind, tmp_path / "s", tokens_per_batch=24)
    explicit = oracle(model, examples)
    for k, (name, sketch) in enumerate(sketches(component_map(model), kind).items()):
        gradients = torch.stack([row[k] for row in explicit])
        wanted = sketch.project_gradient(gradients).numpy()
        assert found[name].shape == (5, sketch.dim) and found[name].dtype == np.float64
        assert np.abs(found[name] - wanted).max() < 1e-6 * np.abs(wanted).max(), name


def test_explicit_gradients_are_formed_a_few_at_a_time(models, tmp_path, monkeypatch):
    model, examples = models("olmo-tied"), make_examples(2, 4)
    whole = run(model, examples, "srht", tmp_path / "whole")
    monkeypatch.setattr(features_module, "CHUNK_BYTES", 1)
    for name, value in run(model, examples, "srht", tmp_path / "one").items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-9, atol=1e-12)


def test_a_resumed_run_gives_the_same_bits(models, tmp_path, monkeypatch):
    model, examples = models("llama-untied", torch.float32), make_examples(3, 9)
    straight = run(model, examples, "factorised", tmp_path / "straight", tokens_per_batch=24)
    written = []

    def write(self, block, values, original=BlockStore.write):
        if len(written) == 2:
            raise KeyboardInterrupt
        original(self, block, values)
        written.append(block)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockStore, "write", write)
        run(model, examples, "factorised", tmp_path / "killed", tokens_per_batch=24)
    resumed = run(model, examples, "factorised", tmp_path / "killed", tokens_per_batch=24)
    for name, value in straight.items():
        assert value.dtype == np.float32 and value.tobytes() == resumed[name].tobytes()


def test_a_number_that_is_not_finite_is_named(models, tmp_path):
    model, examples = models("bloom-untied", torch.float32), make_examples(4, 3)
    broken = Examples([*examples, Example("culprit", np.array([3, 20, 4]), np.array([False, True, True]), "")])
    saved = model.transformer.word_embeddings.weight[20].clone()
    try:
        with torch.no_grad():
            model.transformer.word_embeddings.weight[20] = float("nan")
        with pytest.raises(UserError, match="example 'culprit': the gradient of component 'lm_head' is nan"):
            run(model, broken, "factorised", tmp_path / "s")
    finally:
        with torch.no_grad():
            model.transformer.word_embeddings.weight[20] = saved
