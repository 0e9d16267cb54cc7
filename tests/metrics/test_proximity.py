"""Distances of two checkpoints against norms taken parameter by parameter."""

from dataclasses import replace

import pytest
import torch

from tdaexp.metrics.proximity import flat_proximity, proximity
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.scratch import Scratch

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}


def pair(architecture: str) -> tuple[LoadedModel, LoadedModel]:
    """A random model, and one whose every parameter is moved."""
    sizes = SIZES if architecture != "gpt2" else {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_inner": 12}
    make = Scratch(architecture, sizes, vocab_size=300, context=16)
    before, after = make.start(["some words"]), make.start(["some words"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in after.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return before, after


def test_llama_s_matrices_one_by_one():
    before, after = pair("olmo")
    table = proximity(before, after).set_index("component")
    old, new = before.model.state_dict(), after.model.state_dict()
    assert len(table) == 14 and not any("embed" in name or "norm" in name for name in table.index)
    for layer in range(2):
        for ours, theirs in [("attn.q", "self_attn.q_proj"), ("mlp.down", "mlp.down_proj")]:
            name = f"model.layers.{layer}.{theirs}.weight"
            distance, norm = (new[name] - old[name]).double().norm(), old[name].double().norm()
            row = table.loc[f"layers.{layer}.{ours}"]
            assert row["distance"] == pytest.approx(float(distance), rel=1e-6)
            assert row["relative"] == pytest.approx(float(distance / norm), rel=1e-6)
            assert (row["type"], row["depth"]) == (ours, layer)


@pytest.mark.parametrize("architecture", ["gpt_neox", "bloom", "gpt2"])
def test_parts_of_fused_matrices_add_up_to_the_whole_without_bias(architecture):
    before, after = pair(architecture) if architecture != "bloom" else bloom()
    table = proximity(before, after)
    old = {name: value for name, value in before.model.named_parameters() if value.ndim == 2}
    new = dict(after.model.named_parameters())
    inside = [name for name in old if ".layers." in name or ".h." in name]
    squared = sum(float((new[name] - old[name]).detach().double().square().sum()) for name in inside)
    norm = sum(float(old[name].detach().double().square().sum()) for name in inside)
    flat = flat_proximity(table)
    assert flat["proximity/distance_sq"] == pytest.approx(squared, rel=1e-6)
    assert flat["proximity/relative"] == pytest.approx((squared / norm) ** 0.5, rel=1e-6)
    assert flat["proximity/largest_relative"] == table["relative"].max()
    assert {"attn.q", "attn.k", "attn.v"} <= set(table["type"])


def bloom() -> tuple[LoadedModel, LoadedModel]:
    """BLOOM's config has names of its own for its sizes."""
    make = Scratch("bloom", {"n_layer": 2, "n_head": 2, "hidden_size": 8}, vocab_size=300, context=16)
    before, after = make.start(["some words"]), make.start(["some words"])
    with torch.no_grad():
        for parameter in after.model.parameters():
            parameter.mul_(1.5)
    return before, after


def test_the_same_checkpoint_is_at_distance_zero():
    before, _ = pair("olmo")
    table = proximity(before, replace(before))
    assert (table["distance"] == 0).all() and (table["norm"] > 0).all()
