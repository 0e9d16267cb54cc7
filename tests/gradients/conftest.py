"""Tiny random models of each architecture, and per-example gradients by plain autograd: the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tdaexp.data.examples import Example, Examples
from tdaexp.models.components import Component, component_map

VOCABULARY = 24
TINY = {
    "olmo": dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4),
    "llama": dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    ),
    "bloom": dict(hidden_size=16, n_layer=2, n_head=4),
    "gpt_neox": dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4),
    "gpt2": dict(n_embd=16, n_layer=2, n_head=4, n_positions=32),
}
EXTRAS = {
    "llama-bias": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "olmo-clip": ("olmo", dict(clip_qkv=0.3)),
    "gpt_neox-sequential": ("gpt_neox", dict(use_parallel_residual=False)),
}
VARIANTS = [f"{name}-{tie}" for name in TINY for tie in ("tied", "untied")] + list(EXTRAS)


def build_model(variant: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A tiny model with random weights, norms and biases included, so that no gradient is trivially right."""
    if variant in EXTRAS:
        architecture, options = EXTRAS[variant]
    else:
        architecture, tie = variant.rsplit("-", 1)
        options = {"tie_word_embeddings": tie == "tied"}
    special = dict(bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False)
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, **TINY[architecture], **options, **special)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.normal_(centre, 0.2)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def models() -> Callable[..., PreTrainedModel]:
    """Build a variant once per session and dtype."""
    built: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def get(variant: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        if (variant, dtype) not in built:
            built[variant, dtype] = build_model(variant, dtype)
        return built[variant, dtype]

    return get


def make_examples(seed: int, count: int, shortest: int = 3, longest: int = 12, prefix: str = "e") -> Examples:
    """Random token sequences with repeats, of different lengths, with random loss masks."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        length = int(rng.integers(shortest, longest + 1))
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        items.append(Example(f"{prefix}{number}", rng.integers(0, VOCABULARY // 2, length), mask, ""))
    return Examples(items)


def autograd_gradients(model: PreTrainedModel, example: Example, reduction: str = "mean") -> dict[str, torch.Tensor]:
    """Gradient of one example's loss by parameter name, from the whole model's plain forward, batch of one."""
    parameters = dict(model.named_parameters())
    tokens = torch.from_numpy(example.tokens)[None]
    with torch.enable_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
        predicted = [t for t in range(1, example.length) if example.loss_mask[t]]
        terms = [-torch.log_softmax(logits[t - 1], dim=0)[example.tokens[t]] for t in predicted]
        loss = torch.stack(terms).sum() / (len(terms) if reduction == "mean" else 1)
        values = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, values, strict=True))


def component_gradient(model: PreTrainedModel, component: Component, gradients: dict) -> torch.Tensor:
    """The component's slice of a full gradient, as one vector; fused matrices are cut by the model's own layout."""
    model_type, heads = model.config.model_type, model.config.num_attention_heads
    pieces = []
    for part in component.parts:
        for suffix in ("weight", "bias"):
            value = gradients.get(f"{part.module}.{suffix}")
            if value is None:  # a tied head's weight is listed under the embedding's name
                continue
            if part.kind == "conv1d" and value.ndim == 2:
                value = value.T
            if part.rows is not None:
                which = "qkv".index(component.name[-1])
                if model_type == "gpt2":
                    value = value.chunk(3, dim=0)[which]
                else:
                    value = value.unflatten(0, (heads, 3, -1))[:, which]
            pieces.append(value.reshape(-1))
    return torch.cat(pieces)


def oracle(model: PreTrainedModel, examples: Examples, reduction: str = "mean") -> list[list[torch.Tensor]]:
    """Per example and component the explicit gradient vector."""
    components = component_map(model).components
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        rows = []
        for example in examples:
            gradients = autograd_gradients(model, example, reduction)
            rows.append([component_gradient(model, component, gradients) for component in components])
        return rows
    finally:
        for parameter, value in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(value)
