"""What every model config ends in: frozen weights, their tokenizer, and an identity for caches."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, masking_utils
from transformers.utils import logging as transformers_logging

from tdaexp.data.examples import Examples
from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model that is ready to be explained: in eval mode, without dropout, parameters frozen.

    `fingerprint` identifies weights and tokenizer; `template` names how prompt and completion become tokens;
    `max_length` is the longest sequence in tokens, prompt and completion together. `classes` names what the head
    chooses between where it is one of classes, read at a text's last token; None where it is one of tokens. `experts`
    tells what a component of a mixture of experts is, and `min_coverage` which share of the parameters components must
    cover (`building.covered`). `base` identifies the model that an adapter was put on.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    template: str
    max_length: int
    classes: tuple[str, ...] | None = None
    experts: str = "expert"
    min_coverage: float = 0.9
    base: str | None = None


def head(model: PreTrainedModel) -> torch.nn.Module:
    """The layer from hidden states to logits: of tokens, or of classes (`score`)."""
    found = model.get_output_embeddings()
    found = getattr(model, "score", None) if found is None else found
    if not isinstance(found, torch.nn.Module):
        raise UserError(f"model: {type(model).__name__} has no head of a known name (lm_head or score)")
    return found


@contextlib.contextmanager
def one_text_a_row() -> Iterator[None]:
    """Inside the block models are not asked whether rows hold several texts: the answer would have to be waited for.

    transformers looks for jumps in the position numbers of every batch, on the device; here there are none.
    """
    before = getattr(masking_utils, "find_packed_sequence_indices", None)
    if before is None:  # another version of transformers, which may wait
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # its own answer for such rows
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Put the model in eval mode (no dropout) and stop gradients from being stored in its parameters."""
    model.eval()
    model.requires_grad_(False)
    return model


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a tokenizer with token ids beyond the embedding's rows.

    Special tokens may lie beyond: transformers adds those of a model's family, whether its texts have them or not, and
    texts are looked at (`check_tokens`).
    """
    rows = _embedded(model)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    highest = max((number for number in tokenizer.get_vocab().values() if number not in special), default=-1)
    if highest >= rows:
        raise UserError(
            f"{where}: the tokenizer's ids go up to {highest} but the model embeds {rows} tokens only; "
            "they do not belong together: set model.tokenizer to the model's own"
        )


def _embedded(model: PreTrainedModel) -> int:
    """Number of tokens that the model has an embedding for."""
    layer: Any = model.get_input_embeddings()
    return int(getattr(layer, "num_embeddings", 0) or layer.weight.shape[0])


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Refuse weights with a NaN or an infinity, by the name of the first tensor: their numbers mean nothing.

    Costs one pass over them.
    """
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if value.is_floating_point() and value.device.type != "meta" and not torch.isfinite(value.sum()):
            wrong = int((~torch.isfinite(value)).sum())  # a sum of finite numbers may overflow
            if wrong:
                raise UserError(
                    f"{where}: {wrong} of {value.numel()} numbers of the tensor '{name}' are NaN or infinite; the "
                    "checkpoint is damaged, or its training diverged: take another one"
                )


def check_tokens(model: PreTrainedModel, examples: Examples, classes: bool = False) -> None:
    """Refuse examples with a token that the model has no embedding for; of `classes` the last number is no token."""
    rows = _embedded(model)
    for example in examples:
        tokens = example.tokens[:-1] if classes else example.tokens
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < rows:
            wrong = int(tokens[(tokens < 0) | (tokens >= rows)][0])
            raise UserError(
                f"example '{example.id}': the tokenizer gives token {wrong}, but the model embeds 0 to {rows - 1}; "
                "they do not belong together: set model.tokenizer to the model's own"
            )


def moved(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Move the model to a device and return it."""
    torch.nn.Module.to(model, device)
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the load bars and advice of transformers; what matters is reported as errors or by our own log."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
