"""The names that this project gives to a model's layers, whatever the model calls them.

A layer's path is read word by word: the number of its block, the part of the block (`self_attn`, `mlp`, …) and the
layer's own word (`q_proj`, `fc1`, …). A path without known words is its own name. What a path cannot tell is how the
rows of a fused matrix are laid out: that stands in a table, one entry per Hugging Face `model_type`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ATTENTION = {"attn", "attention", "self_attn", "self_attention"}
FEED_FORWARD = {"mlp", "ffn", "feed_forward", "block_sparse_moe"}
IN_ATTENTION = {
    **{"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o", "dense": "o", "c_proj": "o"},
    **{"query": "q", "key": "k", "value": "v", "wq": "q", "wk": "k", "wv": "v", "wo": "o"},
    **{name: name for name in ("q", "k", "v", "o")},
}
IN_FEED_FORWARD = {
    **{"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "fc1": "up", "fc2": "down", "c_fc": "up"},
    **{"c_proj": "down", "dense_h_to_4h": "up", "dense_4h_to_h": "down", "fc_in": "up", "fc_out": "down"},
    **{"w1": "gate", "w2": "down", "w3": "up", "gate": "gate", "up": "up", "down": "down"},
}
EMBEDDINGS = {"embed_tokens", "tokens_embed", "word_embeddings", "embed_in", "wte", "embed"}
POSITIONS = {"embed_positions", "positions_embed", "position_embeddings", "wpe", "pos_embed"}
HEADS = {"lm_head", "embed_out", "score"}  # of tokens, of tokens before transformers 5, of classes
WRAPPERS = {"base_layer", "default"}  # of an adapter: the layer that it adapts, and the adapter's usual name
STACKS = {"layers", "layer", "h", "blocks", "block"}  # what the blocks are in, by number
NORM = re.compile(r"norm|^ln(_|$)", re.IGNORECASE)
BLOCK = re.compile(r"layers\.\d+\.(attn|mlp)")
QKV = ("q", "k", "v")


@dataclass(frozen=True)
class Fused:
    """Several components in one weight matrix: their `names`, and `rows`, the output rows of each."""

    names: tuple[str, ...]
    rows: tuple[np.ndarray, ...]


def interleaved(groups: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Output rows of components that follow each other in each of some `groups` of rows, with these sizes there.

    Heads that hold q, k and v one after the other are such groups; matrices one after the other are one group.
    """
    ends = np.cumsum(sizes)
    grid = np.arange(groups * int(ends[-1])).reshape(groups, -1)
    return tuple(grid[:, end - size : end].reshape(-1) for end, size in zip(ends, sizes, strict=True))


def _third(config: Any, rows: int) -> tuple[np.ndarray, ...]:
    return interleaved(1, (rows // 3,) * 3)


def _by_head(config: Any, rows: int) -> tuple[np.ndarray, ...]:
    heads = config.num_attention_heads
    return interleaved(heads, (rows // heads // 3,) * 3)


def _grouped(config: Any, rows: int) -> tuple[np.ndarray, ...]:
    """Heads of q, then those of k, then those of v, of which there may be fewer."""
    heads, few = config.num_attention_heads, config.num_key_value_heads
    size = rows // (heads + 2 * few)
    return interleaved(1, (heads * size, few * size, few * size))


def _falcon(config: Any, rows: int) -> tuple[np.ndarray, ...]:
    """Each group of heads of q with the head of k and of v that it shares; all of them at once, or each its own."""
    heads = few = config.num_attention_heads
    if config.new_decoder_architecture:
        few = config.num_kv_heads
    elif config.multi_query:
        few = 1
    size = rows // (heads + 2 * few)
    return interleaved(few, (heads // few * size, size, size))


def _halves(config: Any, rows: int) -> tuple[np.ndarray, ...]:
    return interleaved(1, (rows // 2,) * 2)


Rows = Callable[[Any, int], tuple[np.ndarray, ...]]

FUSED: dict[str, dict[str, tuple[tuple[str, ...], Rows]]] = {
    "bloom": {"query_key_value": (QKV, _by_head)},
    "gpt_neox": {"query_key_value": (QKV, _by_head)},
    "gpt2": {"c_attn": (QKV, _third)},
    "falcon": {"query_key_value": (QKV, _falcon)},
    "phi3": {"qkv_proj": (QKV, _grouped), "gate_up_proj": (("gate", "up"), _halves)},
    "glm": {"gate_up_proj": (("gate", "up"), _halves)},
    "glm4": {"gate_up_proj": (("gate", "up"), _halves)},
}
"""Of each `model_type`, the words of its fused matrices: what they hold, and in which rows (config, all rows)."""

FUSED_WORDS = {"query_key_value": "qkv", "c_attn": "qkv", "qkv_proj": "qkv", "gate_up_proj": "gateup"}


def name_of(path: str) -> str:
    """The component's name for the layer at a dotted path, as far as its words are known; else the path.

    `model.layers.3.self_attn.q_proj` is `layers.3.attn.q`, an adapter's matrix there `layers.3.attn.q.lora_A`.
    """
    return _known(path) or path


def _known(path: str) -> str | None:
    words = [word for word in path.split(".") if word not in WRAPPERS]
    pairs = enumerate(itertools.pairwise(words), start=1)
    number = next((place for place, (word, behind) in pairs if word in STACKS and behind.isdecimal()), None)
    if number is None:
        return _outside(words)
    inside = _inside(words[number + 1 :])
    return None if inside is None else ".".join(["layers", words[number], *inside])


def _outside(words: list[str]) -> str | None:
    last = words[-1] if words else ""
    if last.startswith("lora_") and len(words) > 1:
        below = _outside(words[:-1])
        return below and f"{below}.{last}"
    for names, name in ((EMBEDDINGS, "embed"), (POSITIONS, "pos_embed"), (HEADS, "lm_head")):
        if last in names:
            return name
    return None


def _inside(words: list[str]) -> list[str] | None:
    """The words behind a block's number, ours where they are known; None where no part of a block is."""
    extra = [word for word in words if word.startswith("lora_")]
    if extra:  # which adapter it is follows the matrix's word
        place = words.index(extra[0])
        below = _inside(words[:place])
        return None if below is None else [*below[:-1], FUSED_WORDS.get(below[-1], below[-1]), *words[place:]]
    *between, last = words or [""]
    parts = ["attn" if word in ATTENTION else "mlp" if word in FEED_FORWARD else word for word in between]
    parts = [word for place, word in enumerate(parts) if word not in parts[:place]]  # `attn.attention` is said twice
    if "attn" in parts and last in IN_ATTENTION:
        return [*parts, IN_ATTENTION[last]]
    if "mlp" in parts:
        return [*parts, IN_FEED_FORWARD.get(last, last)]
    if not parts and last in IN_FEED_FORWARD and last != "c_proj":
        return ["mlp", IN_FEED_FORWARD[last]]
    return [*parts, last] if last else parts or None


def fused_at(path: str, config: Any, rows: int) -> Fused | None:
    """The fused matrix of `rows` output rows at a dotted path, where the table has the model's; None where not."""
    stem, _, word = name_of(path).rpartition(".")
    entry = FUSED.get(str(getattr(config, "model_type", "")), {}).get(word)
    if entry is None or not BLOCK.fullmatch(stem):
        return None
    names, cut = entry
    return Fused(tuple(f"{stem}.{name}" for name in names), cut(config, rows))


def canonical_name(parameter: str) -> str:
    """Translate a parameter's name into the component's: 'model.layers.0.self_attn.q_proj.weight' to 'layers.0.attn.q'.

    A fused q, k, v matrix, which is three components, is called 'layers.0.attn.qkv'. All norms share the name 'norms'.
    A name without known words comes back unchanged, so that names which are canonical already may be passed.
    """
    module = re.sub(r"\.(weight|bias)$", "", parameter)
    last = module.rpartition(".")[2]
    if NORM.search(last):
        return "norms"
    name = _known(module)
    if name is None or (name.startswith("layers.") and not BLOCK.match(name)):
        return parameter
    stem, _, word = name.rpartition(".")
    return f"{stem}.{FUSED_WORDS[word]}" if word in FUSED_WORDS else name
