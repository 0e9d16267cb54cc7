"""Records into token ids and loss masks, with an exact boundary between prompt and completion.

The loss mask is True from the completion's first token on, including what closes it (the end-of-text token,
or the chat template's end of turn). Of a dialogue the assistant's earlier turns carry loss too, unless `turns=last`. A
query with a rejected answer is two texts.

Examples longer than `max_length`: the completion may always have half of the length, and more where the
prompt leaves it; the prompt (of a dialogue, all before the last answer) loses its left end, the completion its right
end. How many were cut is logged. With `chunk`, texts are cut into pieces instead (`chunks`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from tdaexp.data.chunks import check_chunk, cut_into_chunks
from tdaexp.data.encoding import Parts, begins_with, encode, framed, token_parts
from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.data.templates import TURNS, resolve, splitter
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import doing

log = logging.getLogger(__name__)
T = TypeVar("T")


def tokenise(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    template: str = "auto",
    max_length: int = 512,
    loss_on: str = "completion",
    append_eos: bool = True,
    turns: str = "all",
    chunk: int | None = None,
) -> Examples:
    """Tokenise prompt and completion of every record with a transformers tokenizer.

    `template` and `turns` are described in `tdaexp.data.templates`. A tokenizer that begins texts with a bos token does
    so here; the end-of-text token is appended where the tokenizer has one, unless `append_eos` is False or the
    template is `chat`, which closes its turns itself. `loss_on` is `completion` or `all`. With `chunk` there may be
    more examples than records.

    Raises:
        UserError: an unknown template, `turns` or `loss_on`, an example without any token to predict, or a `chunk`
            that does not fit.
    """
    if loss_on not in ("completion", "all"):
        raise unknown("value", loss_on, ("completion", "all"), "dataset.loss_on")
    if turns not in TURNS:
        raise unknown("value", turns, TURNS, "dataset.turns")
    check_length(max_length)
    check_chunk(chunk, max_length)
    doing(f"tokenising {len(records)} texts")
    rejected = [record.rejected for record in records if record.rejected is not None]
    texts = [*records, *rejected]
    resolved = resolve(template, tokenizer)
    bos = begins_with(tokenizer) if resolved != "chat" else []
    closing = append_eos and resolved != "chat" and tokenizer.eos_token_id is not None
    eos = [int(tokenizer.eos_token_id)] if closing else []
    parts = [framed(one, bos, eos) for one in token_parts(texts, tokenizer, resolved, turns)]
    if chunk is None:
        log_lengths(texts, parts, max_length)
        parts = [shorten(one, max_length, len(bos)) for one in parts]
    found = [make_example(record, one, loss_on) for record, one in zip(texts, parts, strict=True)]
    if chunk is not None:
        return cut_into_chunks(found, chunk, len(bos), tokenizer)
    others = iter(found[len(records) :])
    return Examples([
        one if record.rejected is None else replace(one, rejected=next(others))
        for record, one in zip(records, found[: len(records)], strict=True)
    ])  # fmt: skip


def tokenise_prompts(
    records: Sequence[Record], tokenizer: Any, *, template: str = "auto", max_length: int = 512
) -> list[np.ndarray]:
    """Tokenise what the model is given when it generates: one int64 array [T] per record, cut on the left to fit.

    Without truncation it is exactly the part of `tokenise`'s example that carries no loss.

    Raises:
        UserError: an unknown template, or a record whose prompt has no token to start from.
    """
    check_length(max_length)
    resolved = resolve(template, tokenizer)
    bos = begins_with(tokenizer) if resolved != "chat" else []
    split = splitter(resolved, tokenizer)
    given = [bos + ids for ids in encode(["".join(split(record)[:-1]) for record in records], tokenizer, records)]
    for record, ids in zip(records, given, strict=True):
        if not ids:
            raise UserError(
                f"{record.place}: has no prompt to generate from; name a prompt column or set "
                "dataset.prompt_fraction, or leave 'generated' out of dataset.query_sets"
            )
    return [np.array(cut_left(ids, max_length, len(bos)), dtype=np.int64) for ids in given]


def shorten(parts: Parts, max_length: int, kept: int) -> Parts:
    """Cut parts to `max_length` tokens; the first `kept` of what is given (its bos) stay."""
    if len(parts.given) + len(parts.written) <= max_length:
        return parts
    room = max(max_length - len(parts.given), max_length - max_length // 2)
    written = parts.written[:room]
    left = max_length - len(written)
    spoken = None if parts.spoken is None else cut_left(parts.spoken, left, kept)
    return Parts(cut_left(parts.given, left, kept), written, spoken)


def cut_left(ids: list[T], length: int, kept: int) -> list[T]:
    """Return the first `kept` and then the last tokens, `length` in all, where there are more."""
    if len(ids) <= length:
        return ids
    kept = min(kept, length)
    return ids[:kept] + ids[len(ids) - (length - kept) :]


def make_example(record: Record, parts: Parts, loss_on: str) -> Example:
    """Join parts into an example.

    Raises:
        UserError: no token carries loss.
    """
    given, written, spoken = parts
    tokens = np.array(given + written, dtype=np.int64)
    mask = np.arange(len(tokens)) >= (len(given) if loss_on == "completion" else 0)
    if spoken is not None:
        mask[: len(given)] |= np.array(spoken, dtype=bool)
    mask[:1] = False  # nothing comes before the first token, so it is never predicted
    if not mask.any():
        raise UserError(
            f"{record.place}: its {len(written)} completion token(s) leave nothing to predict; give "
            "it a longer completion or a prompt, remove it, or set dataset.append_eos=true"
        )
    return Example(record.id, tokens, mask, record.text, prompt=record.prompt)


def check_length(max_length: int) -> None:
    """Refuse a length that leaves nothing to predict."""
    if max_length < 2:
        raise UserError(f"dataset.max_length={max_length}: needs at least 2 tokens, one to read and one to predict")


def log_lengths(records: Sequence[Record], parts: Sequence[Parts], max_length: int) -> None:
    """Say how many examples are longer than `max_length`, and the first of them."""
    lengths = [len(one.given) + len(one.written) for one in parts]
    longer = [row for row, length in enumerate(lengths) if length > max_length]
    if longer:
        log.warning(
            "%d of %d examples are longer than the %d tokens that the model reads (its context, or dataset.max_length "
            "where that is less; longest %d) and were cut: prompts on the left, completions on the right; first: %s",
            len(longer),
            len(parts),
            max_length,
            max(lengths),
            records[longer[0]].place,
        )
