"""The one-layer transformer of ExPLAIND E.2 (Varma et al. 2023, Nanda et al. 2023) for modular addition.

The paper's names for the parts: embedding `embed`; attention encoder `layers.0.attn.q`, `.k` (and `.v`); attention
decoder `layers.0.attn.o`; Linear 1 and 2 `layers.0.mlp.up` and `.down`; decoder `lm_head`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tdaexp.models.task import TaskModel, activation
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from tdaexp.data.tensors import TensorCorpus

BIASES = ("all", "mlp", "none")


@dataclass
class Grokking(TaskModel):
    """An encoder layer over four tokens without positions; the answer is read at the last token.

    hidden, heads, inner: widths of the residual stream and of the MLP, and the number of heads. bias: which linear
    layers have one, `all`, those of the `mlp`, or `none`. The authors' program differs from their text, each difference
    a key: tied_heads: one matrix is query, key and value of its head; heads_apart: the attention's output starts as a
    matrix for each head does, uniform within 1 / √(hidden / heads) and not 1 / √hidden (their sum is one matrix, and
    AdamW trains entries one by one, so that the start is all the difference); residual_attention: false adds nothing
    to what attention gives; scale_embedding: times √hidden; activation_after: the activation follows the second linear
    layer too. norm: layer norms after both residual sums, as in Vaswani et al. 2017 (neither the paper's text nor its
    figures name any).
    """

    name: str = "grokking"
    hidden: int = 64
    heads: int = 4
    inner: int = 512
    bias: str = "all"
    tied_heads: bool = False
    heads_apart: bool = False
    residual_attention: bool = True
    scale_embedding: bool = False
    activation_after: bool = False
    norm: bool = False

    def __post_init__(self) -> None:
        """Refuse widths that the heads do not divide."""
        super().__post_init__()
        for key in ("hidden", "heads", "inner"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)}: must be at least 1")
        if self.bias not in BIASES:
            raise unknown("value", self.bias, BIASES, "model.bias")
        if self.hidden % self.heads:
            raise UserError(f"model.hidden={self.hidden}: must be a multiple of model.heads={self.heads}")

    def module(self, corpus: TensorCorpus) -> nn.Module:
        """The network for a vocabulary of `corpus.classes` tokens."""
        if corpus.train.inputs.ndim != 2 or corpus.train.inputs.is_floating_point():
            raise UserError("model=grokking: needs sequences of tokens; choose dataset=modular_addition")
        return GrokkingTransformer(self, corpus.classes)


class GrokkingTransformer(nn.Module):
    """Tokens [N, 4] int64 to logits [N, vocabulary] at the last token."""

    def __init__(self, config: Grokking, vocabulary: int) -> None:
        super().__init__()
        self.scale = config.hidden**0.5 if config.scale_embedding else 1.0
        self.embed = nn.Embedding(vocabulary, config.hidden)
        self.layers = nn.ModuleList([EncoderLayer(config)])
        self.lm_head = nn.Linear(config.hidden, vocabulary, bias=config.bias == "all")

    def forward(self, tokens: Tensor) -> Tensor:
        """Only the last token is read, so only its query and its row of the MLP are computed."""
        stream = self.embed(tokens) * self.scale  # [N, T, D]
        for layer in self.layers:
            stream = layer(stream)
        logits: Tensor = self.lm_head(stream)
        return logits


class EncoderLayer(nn.Module):
    """Attention of the last token over all, then the MLP: [N, T, D] to [N, D]."""

    def __init__(self, config: Grokking) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = nn.ModuleDict(
            {
                "up": nn.Linear(config.hidden, config.inner, bias=config.bias != "none"),
                "down": nn.Linear(config.inner, config.hidden, bias=config.bias != "none"),
            }
        )
        self.activation = activation(config.activation)
        self.residual_attention, self.activation_after = config.residual_attention, config.activation_after
        self.norm1 = nn.LayerNorm(config.hidden) if config.norm else nn.Identity()
        self.norm2 = nn.LayerNorm(config.hidden) if config.norm else nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        """Residual sums around both halves, each then normalised where the config says so."""
        mixed = self.attn(stream)
        middle = self.norm1(stream[:, -1] + mixed if self.residual_attention else mixed)  # [N, D]
        changed = self.mlp["down"](self.activation(self.mlp["up"](middle)))
        changed = self.activation(changed) if self.activation_after else changed
        last: Tensor = self.norm2(middle + changed)
        return last


class Attention(nn.Module):
    """Softmax attention of the last token: [N, T, D] to [N, D]."""

    def __init__(self, config: Grokking) -> None:
        super().__init__()
        self.heads, self.tied = config.heads, config.tied_heads
        linear = functools.partial(nn.Linear, config.hidden, config.hidden, bias=config.bias == "all")
        if self.tied:
            self.qkv = linear()
        else:
            self.q, self.k, self.v = linear(), linear(), linear()
        self.o = linear()
        if config.heads_apart:
            bound = (config.hidden // config.heads) ** -0.5  # of torch's Linear(hidden / heads, hidden)
            nn.init.uniform_(self.o.weight, -bound, bound)

    def forward(self, stream: Tensor) -> Tensor:
        """Scores over √(D / heads); no mask, the last token may look at every one."""
        count, length, width = stream.shape
        shape = (count, length, self.heads, width // self.heads)
        if self.tied:
            keys = values = self.qkv(stream).view(shape)
            query = keys[:, -1]
        else:
            keys, values = self.k(stream).view(shape), self.v(stream).view(shape)
            query = self.q(stream[:, -1]).view(count, self.heads, -1)
        scores = torch.einsum("nhd,nthd->nht", query, keys) / (width // self.heads) ** 0.5
        mixed = torch.einsum("nht,nthd->nhd", scores.softmax(-1), values)
        out: Tensor = self.o(mixed.reshape(count, width))
        return out
