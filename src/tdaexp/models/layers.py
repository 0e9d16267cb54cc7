"""Where each architecture keeps its layers, and the names that this project gives them.

One entry per Hugging Face `model_type` maps module paths to component names; `#` stands for the layer's
number on both sides. Adding an architecture is adding one entry. A fused matrix names the components that
share it, and how its output rows are laid out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tdaexp.runtime.errors import unknown


@dataclass(frozen=True)
class Fused:
    """Several components in one weight matrix, of equal size.

    `interleaved`: output rows are laid out per head, as view(heads, len(names), head_dim); otherwise the
    components lie one after the other.
    """

    names: tuple[str, ...]
    interleaved: bool

    def rows(self, outputs: int, heads: int) -> list[np.ndarray]:
        """Output rows of each component in a matrix of `outputs` rows, in the order of `names`."""
        blocks = (heads, len(self.names), -1) if self.interleaved else (1, len(self.names), -1)
        grid = np.arange(outputs).reshape(blocks)
        return [grid[:, k].reshape(-1) for k in range(len(self.names))]


Layout = Mapping[str, str | Fused]

QKV = ("layers.#.attn.q", "layers.#.attn.k", "layers.#.attn.v")

LLAMA: Layout = {
    "model.embed_tokens": "embed",
    "model.layers.#.self_attn.q_proj": "layers.#.attn.q",
    "model.layers.#.self_attn.k_proj": "layers.#.attn.k",
    "model.layers.#.self_attn.v_proj": "layers.#.attn.v",
    "model.layers.#.self_attn.o_proj": "layers.#.attn.o",
    "model.layers.#.mlp.gate_proj": "layers.#.mlp.gate",
    "model.layers.#.mlp.up_proj": "layers.#.mlp.up",
    "model.layers.#.mlp.down_proj": "layers.#.mlp.down",
    "model.layers.#.input_layernorm": "norms",
    "model.layers.#.post_attention_layernorm": "norms",
    "model.norm": "norms",
    "lm_head": "lm_head",
    "score": "lm_head",  # of classes
}

BLOOM: Layout = {
    "transformer.word_embeddings": "embed",
    "transformer.word_embeddings_layernorm": "norms",
    "transformer.h.#.self_attention.query_key_value": Fused(QKV, interleaved=True),
    "transformer.h.#.self_attention.dense": "layers.#.attn.o",
    "transformer.h.#.mlp.dense_h_to_4h": "layers.#.mlp.up",
    "transformer.h.#.mlp.dense_4h_to_h": "layers.#.mlp.down",
    "transformer.h.#.input_layernorm": "norms",
    "transformer.h.#.post_attention_layernorm": "norms",
    "transformer.ln_f": "norms",
    "lm_head": "lm_head",
    "score": "lm_head",  # of classes
}

GPT_NEOX: Layout = {
    "gpt_neox.embed_in": "embed",
    "gpt_neox.layers.#.attention.query_key_value": Fused(QKV, interleaved=True),
    "gpt_neox.layers.#.attention.dense": "layers.#.attn.o",
    "gpt_neox.layers.#.mlp.dense_h_to_4h": "layers.#.mlp.up",
    "gpt_neox.layers.#.mlp.dense_4h_to_h": "layers.#.mlp.down",
    "gpt_neox.layers.#.input_layernorm": "norms",
    "gpt_neox.layers.#.post_attention_layernorm": "norms",
    "gpt_neox.final_layer_norm": "norms",
    "lm_head": "lm_head",
    "score": "lm_head",  # of classes
    "embed_out": "lm_head",  # the head's name before transformers 5
}

GPT2: Layout = {
    "transformer.wte": "embed",
    "transformer.wpe": "pos_embed",
    "transformer.h.#.attn.c_attn": Fused(QKV, interleaved=False),
    "transformer.h.#.attn.c_proj": "layers.#.attn.o",
    "transformer.h.#.mlp.c_fc": "layers.#.mlp.up",
    "transformer.h.#.mlp.c_proj": "layers.#.mlp.down",
    "transformer.h.#.ln_1": "norms",
    "transformer.h.#.ln_2": "norms",
    "transformer.ln_f": "norms",
    "lm_head": "lm_head",
    "score": "lm_head",  # of classes
}

ARCHITECTURES: dict[str, Layout] = {
    "olmo": LLAMA,
    "llama": LLAMA,
    "bloom": BLOOM,
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
}

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def layout(model_type: str) -> Layout:
    """Return the layout of a Hugging Face `model_type`. Errors: an unsupported one."""
    if model_type not in ARCHITECTURES:
        raise unknown("architecture", model_type, ARCHITECTURES, "config.model_type of the model")
    return ARCHITECTURES[model_type]


def names_of(module: str, table: Layout) -> tuple[str, ...]:
    """Names of the components in the module at a dotted path: several for a fused matrix, () if unknown."""
    found = fused_at(module, table)
    if found is not None:
        return found.names
    name = table.get(_NUMBER.sub("#", module))
    return (_numbered(name, module),) if isinstance(name, str) else ()


def fused_at(module: str, table: Layout) -> Fused | None:
    """Return the fused matrix at a dotted path, its component names carrying the layer's number, or None."""
    entry = table.get(_NUMBER.sub("#", module))
    if not isinstance(entry, Fused):
        return None
    return Fused(tuple(_numbered(name, module) for name in entry.names), entry.interleaved)


def canonical_name(parameter: str, model_type: str | None = None) -> str:
    """Translate a parameter's name into the component's: 'model.layers.0.self_attn.q_proj.weight' to 'layers.0.attn.q'.

    Looks in one architecture or, with None, in all. A fused q, k, v matrix, which is three components, is
    called 'layers.0.attn.qkv'. All norms share the name 'norms'. A name that no table knows comes back
    unchanged, so that names which are canonical already may be passed. Errors: unknown `model_type`.
    """
    module = re.sub(r"\.(weight|bias)$", "", parameter)
    for table in [layout(model_type)] if model_type else ARCHITECTURES.values():
        names = names_of(module, table)
        if names:
            return joined(names)
    return parameter


def joined(names: tuple[str, ...]) -> str:
    """The name of a matrix that is several components: 'layers.0.attn.qkv' of q, k and v."""
    stem, last = names[0].rpartition(".")[::2]
    return names[0] if len(names) == 1 else f"{stem}." + "".join([last, *(one.rpartition(".")[2] for one in names[1:])])


def _numbered(name: str, module: str) -> str:
    """Fill `#` with the layer's number found in the module's path."""
    number = _NUMBER.search(module)
    return name.replace("#", number.group()) if number else name
