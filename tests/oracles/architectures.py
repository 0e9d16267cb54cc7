"""Tiny decoders of many architectures with random weights, a part of each example batch, and autograd's gradients."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedModel

from tdaexp.data.examples import Example, Examples

VOCABULARY = 40
BASE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "vocab_size": VOCABULARY, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**BASE, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "Falcon": ("falcon", {"ffn_hidden_size": 24}),
    "Falcon, grouped heads": ("falcon", {"ffn_hidden_size": 24, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Gemma": ("gemma", {**WIDE, "tie_word_embeddings": True}),
    "Gemma 2": ("gemma2", {**WIDE, "tie_word_embeddings": True, "final_logit_softcapping": 2.0}),
    "Gemma 3 (text)": ("gemma3_text", {**WIDE, "tie_word_embeddings": True}),
    "GLM 4": ("glm4", WIDE),
    "GPT-2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "GPT-J": ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4}),
    "GPT-Neo": (
        "gpt_neo",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
         "intermediate_size": 24},
    ),
    "GPT-NeoX, Pythia": ("gpt_neox", {}),
    "Granite": ("granite", {**GROUPED, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "Llama, SmolLM2": ("llama", GROUPED),
    "Mistral": ("mistral", WIDE),
    "Mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "OLMo": ("olmo", {}),
    "OLMo 2": ("olmo2", {}),
    "OPT": ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "OPT, projected": ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 8}),
    "Phi 2": ("phi", {}),
    "Phi 3": ("phi3", GROUPED),
    "Qwen 2": ("qwen2", GROUPED),
    "Qwen 2, experts": ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "Qwen 3": ("qwen3", WIDE),
    "Qwen 3, experts": ("qwen3_moe", {**WIDE, **EXPERTS}),
    "SmolLM3": ("smollm3", GROUPED),
    "StableLM": ("stablelm", GROUPED),
    "StarCoder 2": ("starcoder2", GROUPED),
}  # fmt: skip
"""The families that docs/models.md lists: transformers' `model_type` and tiny sizes."""

LATENT = {
    **EXPERTS, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "router in float32, by type": ("deepseek_v3", {**BASE, **LATENT}),
    "router in float32, by float": (
        "ernie4_5_moe", {**WIDE, **EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}
    ),
    "router that is a linear layer": ("phimoe", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "norm that is one plus its weight": ("nemotron", WIDE),
    "model that is its own base": ("llama4_text", {**WIDE, "num_local_experts": 2, "intermediate_size_mlp": 24}),
    "positions for all texts at once": ("openai-gpt", {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "layers that run more than once": (
        "gemma3n_text",
        {**WIDE, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "num_hidden_layers": 4,
         "intermediate_size": [24] * 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 4,
         "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4, "sliding_window": 8},
    ),
    "operation that knows plain autograd alone": (
        "recurrent_gemma", {**WIDE, "num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 8}
    ),
}  # fmt: skip
"""Models that do something in a way of their own: what, transformers' `model_type`, and tiny sizes."""


@functools.cache
def tiny(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model whose every weight matters, frozen: not to be changed."""
    kind, sizes = (ARCHITECTURES | UNUSUAL)[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = hf.AutoConfig.for_model(kind, **{**BASE, **sizes})
        model: PreTrainedModel = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2 if parameter.ndim == 1 else 0.25)
    model = model.to(dtype).eval().requires_grad_(False)
    model.set_experts_implementation("eager")  # grouped products take no float64
    return model


def texts(count: int = 4) -> Examples:
    """Random texts of different lengths, the second half of each predicted."""
    rng = np.random.default_rng(1)
    lengths = [int(rng.integers(6, 14)) for _ in range(count)]
    return Examples([
        Example(f"t{k}", rng.integers(1, VOCABULARY, length), np.arange(length) >= length // 2, "")
        for k, length in enumerate(lengths)
    ])  # fmt: skip


def gradients(model: PreTrainedModel, examples: Examples) -> dict[str, torch.Tensor]:
    """Autograd's gradients [N, *shape] of each example's mean loss, one at a time, through the model's own forward."""
    named, rows = dict(model.named_parameters()), []
    model.requires_grad_(True)
    try:
        for one in examples:
            tokens = torch.from_numpy(one.tokens)
            places = torch.from_numpy(np.flatnonzero(one.loss_mask))
            logits = model(input_ids=tokens[None]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[places - 1], tokens[places])
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True)])
    finally:
        model.requires_grad_(False)
    return {name: torch.stack(column) for name, column in zip(named, zip(*rows, strict=True), strict=True)}
