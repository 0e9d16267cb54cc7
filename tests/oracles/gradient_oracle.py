"""Tiny random models of each architecture, random examples, and their gradients by plain autograd."""

from __future__ import annotations

import functools

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tdaexp.data.examples import Example, Examples
from tdaexp.gradients.passes import Gradients
from tdaexp.models.components import Component, ComponentMap, component_map
from tdaexp.objectives.tokens import NextToken

VOCABULARY = 24
TINY = {
    "olmo": dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4),
    "llama": dict(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
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


shared_model = functools.cache(build_model)
"""The same, built once for each variant and dtype: not to be changed."""


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


def gradients_of(
    model: PreTrainedModel, examples: Examples, components: ComponentMap | None = None, pad_id: int = 0, **options
) -> Gradients:
    """What is tested: the examples' gradients with respect to some components, or all; the reduction is `mean`."""
    return Gradients(model, components or component_map(model), examples, NextToken(pad_id), **options)


def autograd_gradients(model: PreTrainedModel, example: Example, reduction: str = "mean") -> dict[str, torch.Tensor]:
    """Gradient of one example's loss by parameter name, from the model's plain forward, batch of one."""
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
    """The component's share of a full gradient as one vector, biases as a last column of their matrix.

    Fused matrices are cut as the model itself views them: per head, or (GPT-2) one block after the other.
    """
    pieces = []
    for part in component.parts:
        values = [gradients.get(f"{part.module}.{suffix}") for suffix in ("weight", "bias")]
        if values[0] is None:  # a tied head's weight is listed under the embedding's name
            continue
        if part.kind == "conv1d":
            values[0] = values[0].T
        if part.rows is not None:
            values = [None if value is None else _third(model, value, component.name[-1]) for value in values]
        if part.kind in ("linear", "conv1d") and values[1] is not None:
            values = [torch.cat([values[0], values[1][:, None]], dim=1), None]
        pieces += [value.reshape(-1) for value in values if value is not None]
    return torch.cat(pieces)


def _third(model: PreTrainedModel, value: torch.Tensor, which: str) -> torch.Tensor:
    """q, k or v of a fused weight or bias."""
    place = "qkv".index(which)
    if model.config.model_type == "gpt2":
        return value.chunk(3, dim=0)[place]
    return value.unflatten(0, (model.config.num_attention_heads, 3, -1))[:, place].flatten(0, 1)


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


def products_oracle(
    model: PreTrainedModel, train: Examples, queries: Examples, pairs: np.ndarray, reduction: str = "mean"
) -> dict[str, np.ndarray]:
    """`dot`, `query_sq` and `train_sq` from explicit gradients, accumulated in float64."""
    left = [torch.stack([g.double().square().sum() for g in row]) for row in oracle(model, queries, reduction)]
    found = {"query_sq": torch.stack(left).numpy()}
    queries_g, train_g = oracle(model, queries, reduction), oracle(model, train, reduction)
    shape = (*pairs.shape, len(queries_g[0]))
    found["dot"], found["train_sq"] = np.full(shape, np.nan), np.full(shape, np.nan)
    for (q, c), t in np.ndenumerate(pairs):
        for k in range(shape[2]) if t >= 0 else ():
            found["dot"][q, c, k] = float(queries_g[q][k].double() @ train_g[t][k].double())
            found["train_sq"][q, c, k] = float(train_g[t][k].double().square().sum())
    return found


def relative_errors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest error of each array: squares relative to themselves, dots relative to the product of norms."""
    scale = np.sqrt(wanted["query_sq"][:, None] * wanted["train_sq"])
    assert (np.isnan(found["dot"]) == np.isnan(wanted["dot"])).all()
    return {
        "dot": float(np.nanmax(np.abs(found["dot"] - wanted["dot"]) / scale)),
        "query_sq": float(np.abs(found["query_sq"] / wanted["query_sq"] - 1).max()),
        "train_sq": float(np.nanmax(np.abs(found["train_sq"] / wanted["train_sq"] - 1))),
    }
