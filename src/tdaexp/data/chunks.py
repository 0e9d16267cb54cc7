"""Long texts cut into pieces that add up to them.

A piece has at most `chunk` tokens. Each begins with the last token of the piece before, which it reads and does not
predict (and with the tokenizer's bos token, where texts begin with one), so that every token of the text is predicted
in exactly one piece, as in training on blocks. A piece in which nothing carries loss is left out. A text that is short
enough stays whole, with its own id; pieces of a longer one are called `ID#1`, `ID#2`, ….
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tdaexp.data.examples import Example, Examples
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
LEAST_CHUNK = 3
"""Tokens of a piece at least: a bos token, one that is read, and one that is predicted."""


def check_chunk(chunk: int | None, max_length: int) -> None:
    """Refuse (UserError) pieces that the model cannot read, or that leave nothing to predict; None: nothing is cut."""
    if chunk is not None and not LEAST_CHUNK <= chunk <= max_length:
        raise UserError(
            f"dataset.chunk={chunk}: must be at least {LEAST_CHUNK} and at most {max_length} tokens, the most that the "
            "model reads (its context, or dataset.max_length)"
        )


def check_names(pieces: Iterable[Example], names: Container[str], chunk: int) -> None:
    """Refuse (UserError) a piece that would have the id of a whole record; `names` are those of all records."""
    for piece in pieces:
        if piece.id != piece.document and piece.id in names:
            raise UserError(
                f"dataset.chunk={chunk}: a piece of '{piece.document}' would be called '{piece.id}', which is another "
                "record's id; rename that one"
            )


def cut_into_chunks(examples: Sequence[Example], chunk: int, kept: int, tokenizer: Any) -> Examples:
    """Pieces of all examples, in order; each names its `document`. The first `kept` tokens (bos) begin each piece.

    Errors (UserError): a piece would have the id of another example.
    """
    found = [piece for example in examples for piece in _pieces(example, chunk, kept, tokenizer)]
    names = {example.id for example in examples}
    check_names(found, names, chunk)
    log.info("dataset.chunk=%d: %d texts in %d pieces", chunk, len(examples), len(found))
    return Examples(found)


def _pieces(example: Example, chunk: int, kept: int, tokenizer: Any) -> list[Example]:
    if example.length <= chunk:
        return [replace(example, document=example.id)]
    found: list[Example] = []
    for start in range(kept, example.length - 1, chunk - kept - 1):
        tokens, mask = (one[start : start + chunk - kept] for one in (example.tokens, example.loss_mask))
        if start > kept:
            mask = np.concatenate([[False], mask[1:]])  # predicted in the piece before
        if mask.any():
            text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            tokens = np.concatenate([example.tokens[:kept], tokens])
            mask = np.concatenate([np.zeros(kept, dtype=bool), mask])
            found.append(Example(f"{example.id}#{len(found) + 1}", tokens, mask, text, example.id))
    return found
