"""Component maps: complete, disjoint, and the same names across architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import TINY
from transformers import AutoConfig, AutoModelForCausalLM, OlmoConfig

from tdaexp.models.components import component_map
from tdaexp.models.layers import canonical_name, interleaved
from tdaexp.runtime.errors import UserError


def build(model_type, device="cpu", **options):
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=None)
    config = AutoConfig.for_model(model_type, vocab_size=20, **{**TINY[model_type], **special, **options})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config)


def olmo_1b_layout(device, width=1):
    """AMD-OLMo-1B's layout; `width` 1 is the real one, larger ones divide its sizes."""
    config = OlmoConfig(
        vocab_size=50304 // width, hidden_size=2048 // width, intermediate_size=8192 // width,
        num_hidden_layers=16, num_attention_heads=16, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("device", "width"), [("meta", 1), ("cpu", 64)])
def test_olmo_1b_has_113_components(device, width):
    components = component_map(olmo_1b_layout(device, width))
    layer = [f"{part}" for part in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")]
    assert components.names == ["embed", *(f"layers.{k}.{part}" for k in range(16) for part in layer)]
    assert len(components) == 113 and components.skipped == {}
    if width == 1:
        line = "attributed 1,176,764,416 of 1,176,764,416 parameters (100 %) in 113 components; skipped: none"
        assert components.coverage_line() == line
        assert components.sizes[0] == 50304 * 2048 and components.sizes[5] == 2048 * 8192


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", TINY)
def test_every_parameter_once(model_type, tied):
    """Each parameter's entries are covered by exactly one component (a tied matrix by one, in two roles)."""
    model = build(model_type, tie_word_embeddings=tied)
    components = component_map(model)
    assert components.skipped == {} and components.sizes.sum() == components.total == model.num_parameters()
    assert "lm_head" not in components.names if tied else components.names[-1] == "lm_head"
    counts = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for component in components.components:
        for part in component.parts:
            for suffix in ("weight", "bias") if part.bias else ("weight",):
                name = f"{part.module}.{suffix}"
                if name in counts:
                    count = counts[name].T if part.kind == "conv1d" and suffix == "weight" else counts[name]
                    count[slice(None) if part.rows is None else torch.from_numpy(part.rows)] += 1
    assert all(bool((count == 1).all()) for count in counts.values())
    assert components.components[0].tied == tied


@pytest.mark.parametrize("model_type", TINY)
def test_order_is_that_of_the_parameters(model_type):
    model = build(model_type)
    order = [name for name, _ in model.named_parameters()]
    components = component_map(model).components
    first = [
        min(order.index(f"{part.module}.weight") for part in c.parts if f"{part.module}.weight" in order)
        for c in components
    ]
    assert first == sorted(first)
    assert [c.name for c in components if ".0.attn." in c.name] == [f"layers.0.attn.{k}" for k in "qkvo"]


def test_what_each_architecture_has():
    assert "layers.0.mlp.gate" not in component_map(build("bloom")).names
    assert component_map(build("gpt2")).names[:3] == ["embed", "pos_embed", "norms"]
    assert "norms" not in component_map(build("olmo")).names
    norms = next(c for c in component_map(build("bloom")).components if c.name == "norms")
    assert len(norms.parts) == 6 and norms.size == 6 * 2 * 16
    assert "transformer.word_embeddings_layernorm" in [part.module for part in norms.parts]
    llama = {c.name: c for c in component_map(build("llama")).components}
    assert llama["layers.1.attn.k"].size == 16 * 8 and llama["layers.1.attn.q"].size == 16 * 16
    assert llama["norms"].size == 5 * 16


@pytest.mark.parametrize("model_type", ["bloom", "gpt_neox"])
def test_fused_rows_are_what_the_model_calls_q(model_type):
    """Rows of q, changed, change attention's queries and nothing else, as seen from the model's own split."""
    model = build(model_type)
    parts = {c.name: c.parts[0] for c in component_map(model).components}
    marks = torch.zeros(48)
    for value, name in enumerate("qkv"):
        marks[torch.from_numpy(parts[f"layers.0.attn.{name}"].rows)] = value + 1.0
    fused = marks.expand(1, 1, 48).contiguous()
    if model_type == "bloom":
        views = model.transformer.h[0].self_attention._reshape(fused)
    else:
        views = fused.view(1, 1, -1, 3 * 4).transpose(1, 2).chunk(3, dim=-1)
    assert [view.unique().tolist() for view in views] == [[1.0], [2.0], [3.0]]


def test_fused_layouts():
    """Per head, one after the other, and two heads of q that share those of k and v."""
    cases = [(2, (2, 2, 2)), (1, (2, 2, 2)), (2, (2, 1, 1))]
    assert [[rows.tolist() for rows in interleaved(*one)] for one in cases] == [
        [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]],
        [[0, 1], [2, 3], [4, 5]],
        [[0, 1, 4, 5], [2, 6], [3, 7]],
    ]


def test_matrix_is_the_shape_of_the_gradient():
    shapes = {c.name: c.matrix for c in component_map(build("gpt2", tie_word_embeddings=True)).components}
    assert shapes["embed"] == (20, 16) and shapes["pos_embed"] == (32, 16) and shapes["norms"] == (5 * 2 * 16, 1)
    assert shapes["layers.0.attn.q"] == (16, 17) and shapes["layers.0.mlp.up"] == (64, 17)
    assert all(np.prod(c.matrix) == c.size for c in component_map(build("bloom")).components)


def test_selection():
    components = component_map(build("llama"))
    part = components.select(["norms", "layers.0.attn.q"])
    assert part.names == ["layers.0.attn.q", "norms"] or part.names == ["norms", "layers.0.attn.q"]
    assert part.names == [name for name in components.names if name in part.names]
    assert part.total == components.total and part.sizes.sum() + sum(part.unchosen.values()) == part.total
    assert "left out by choice: embed (320), " in part.coverage_line()
    assert part.coverage_line().endswith("; skipped: none")
    with pytest.raises(UserError, match=r"unknown component 'layers.0.attn.z'; did you mean 'layers.0.attn.\w'"):
        components.select(["layers.0.attn.z"])
    with pytest.raises(UserError, match="empty"):
        components.select([])


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "layers.0.attn.q"),
        ("model.embed_tokens.weight", "embed"),
        ("model.layers.12.mlp.down_proj.weight", "layers.12.mlp.down"),
        ("transformer.h.3.mlp.c_fc.bias", "layers.3.mlp.up"),
        ("transformer.h.3.attn.c_attn.weight", "layers.3.attn.qkv"),
        ("gpt_neox.layers.7.attention.query_key_value.weight", "layers.7.attn.qkv"),
        ("transformer.wpe.weight", "pos_embed"),
        ("model.decoder.layers.2.fc2.weight", "layers.2.mlp.down"),
        ("transformer.h.2.attn.attention.out_proj.weight", "layers.2.attn.o"),
        ("model.layers.2.mlp.shared_expert.up_proj.weight", "layers.2.mlp.shared_expert.up"),
        ("model.layers.2.block_sparse_moe.experts.5.w1.weight", "layers.2.mlp.experts.5.gate"),
        ("transformer.h.0.crossattention.q_attn.weight", "transformer.h.0.crossattention.q_attn.weight"),
        ("model.layers.0.b", "model.layers.0.b"),
        ("model.layers.1.self_attn.q_norm.weight", "norms"),
        ("model.layers.1.self_attn.q_proj.base_layer.weight", "layers.1.attn.q"),
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight", "layers.1.attn.q.lora_A"),
        ("model.layers.1.self_attn.q_proj.lora_B.second.weight", "layers.1.attn.q.lora_B.second"),
        ("transformer.h.1.self_attention.query_key_value.lora_B.default.weight", "layers.1.attn.qkv.lora_B"),
        ("transformer.ln_f.bias", "norms"),
        ("lm_head.weight", "lm_head"),
        ("layers.3.attn.q", "layers.3.attn.q"),
        ("something.else", "something.else"),
    ],
)
def test_canonical_name(parameter, name):
    assert canonical_name(parameter) == name
