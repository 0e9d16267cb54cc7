"""Records into token ids and loss masks, with an exact boundary between prompt and completion.

The loss mask is True from the completion's first token on, including what closes it (the end-of-text token,
or the chat template's end of turn). Prompt and completion are tokenised as one text where that keeps the
boundary (the prompt's own tokens are then how it begins) and apart where a token would straddle it; either
way the model sees in training exactly the prompt tokens that it is given when it generates.

Of a dialogue the assistant's earlier turns carry loss too, unless `turns=last`. A query with a rejected answer is
two texts.

Examples longer than `max_length`: the completion may always have half of the length, and more where the
prompt leaves it; the prompt (of a dialogue, all before the last answer) loses its left end, the completion its right
end. How many were cut is logged. With `chunk`, texts are cut into pieces instead (`chunks`).
"""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tdaexp.data.chunks import cut_into_chunks
from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.data.templates import TURNS, resolve, splitter
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import doing, track
from tdaexp.runtime.reading import reason

log = logging.getLogger(__name__)
AT_ONCE = 256  # texts in one call of the tokenizer
T = TypeVar("T")
SHOWN_FROM = 5_000_000  # characters, from which on progress is shown


class Parts(NamedTuple):
    """Tokens `given` to the model and `written` by it; `spoken`: which of the given ones it wrote itself before."""

    given: list[int]
    written: list[int]
    spoken: list[bool] | None = None


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
    if chunk is not None and not 3 <= chunk <= max_length:
        raise UserError(
            f"dataset.chunk={chunk}: must be at least 3 and at most {max_length} tokens, the most that the model reads "
            "(its context, or dataset.max_length)"
        )
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


def token_parts(records: Sequence[Record], tokenizer: Any, template: str, turns: str = "all") -> list[Parts]:
    """Tokenise every record's parts, without bos or eos (see the module's docstring for the boundaries)."""
    split = splitter(template, tokenizer, turns)
    texts = [split(record) for record in records]
    whole = encode(["".join(parts) for parts in texts], tokenizer, records)
    check_words(records, ["".join(parts) for parts in texts], whole, tokenizer)
    # what comes before each part but the first: where its tokens begin the whole, the part begins behind them
    owners = [row for row, parts in enumerate(texts) for _ in parts[1:]]
    before = ["".join(parts[:k]) for parts in texts for k in range(1, len(parts))]
    starts = [[0] for _ in records]
    fits = [True] * len(records)
    for row, ids in zip(owners, encode(before, tokenizer, [records[row] for row in owners]), strict=True):
        fits[row] &= whole[row][: len(ids)] == ids
        starts[row].append(len(ids))
    pieces = [
        [ids[a:b] for a, b in itertools.pairwise([*cuts, len(ids)])] for ids, cuts in zip(whole, starts, strict=True)
    ]
    apart = [row for row, fit in enumerate(fits) if not fit]
    alone = iter(encode([part for row in apart for part in texts[row]], tokenizer,
                        [records[row] for row in apart for _ in texts[row]]))  # fmt: skip
    for row in apart:
        pieces[row] = [next(alone) for _ in texts[row]]
    return [joined(parts) for parts in pieces]


def joined(pieces: list[list[int]]) -> Parts:
    """The pieces `given, written, given, …` before the last one, and that."""
    if len(pieces) == 2:
        return Parts(*pieces)
    spoken = [bool(k % 2) for k, piece in enumerate(pieces[:-1]) for _ in piece]
    return Parts([token for piece in pieces[:-1] for token in piece], pieces[-1], spoken)


def framed(parts: Parts, bos: list[int], eos: list[int]) -> Parts:
    """The parts between a bos and an eos token, where there are such."""
    spoken = None if parts.spoken is None else [False] * len(bos) + parts.spoken
    return Parts(bos + parts.given, parts.written + eos, spoken)


def encode(texts: list[str], tokenizer: Any, records: Sequence[Record], special: bool = False) -> list[list[int]]:
    """Token ids of every text, with the tokenizer's `special` ones or without; `records` are what the texts came from.

    Raises:
        UserError: the tokenizer fails on a text, or gives something else than token numbers.
    """
    found: list[list[int]] = []
    starts = range(0, len(texts), AT_ONCE)
    long = sum(map(len, texts)) > SHOWN_FROM  # takes more than a few seconds
    for start in track(starts, "tokenising batches of texts", len(starts)) if long else starts:
        chunk = texts[start : start + AT_ONCE]
        try:
            ids = tokenizer(chunk, add_special_tokens=special, verbose=False)["input_ids"]
            found += [[operator.index(token) for token in row] for row in ids]
        except Exception as error:
            raise _failure(chunk, tokenizer, records[start : start + AT_ONCE], error) from error
    return found


def _failure(texts: list[str], tokenizer: Any, records: Sequence[Record], error: Exception) -> UserError:
    """Name the record that the tokenizer fails on."""
    for text, record in zip(texts, records, strict=True):
        try:
            [
                operator.index(token)
                for token in tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
            ]
        except Exception as own:
            return UserError(
                f"{record.place}: the tokenizer fails on its text ({type(own).__name__}: {reason(own)}); set "
                "model.tokenizer to one that works, or mend the text"
            )
    return UserError(
        f"the tokenizer fails ({type(error).__name__}: {reason(error)}); set model.tokenizer to another one"
    )


def check_words(records: Sequence[Record], texts: list[str], ids: list[list[int]], tokenizer: Any) -> None:
    """Refuse (UserError) a tokenizer that reads nothing of a text, or knows no token of any."""
    for record, text, own in zip(records, texts, ids, strict=True):
        if text.strip() and not own:
            raise UserError(
                f"{record.place}: the tokenizer makes no token of its text; set model.tokenizer to the model's own, or "
                "mend the text"
            )
    unknown_id = tokenizer.unk_token_id
    if unknown_id is not None and any(ids) and all(token == unknown_id for own in ids for token in own):
        raise UserError(
            f"the tokenizer knows no word of {len(ids)} texts: every token is '{tokenizer.unk_token}' (the first: "
            f"{records[0].place}); set model.tokenizer to one for this language"
        )


def begins_with(tokenizer: Any) -> list[int]:
    """Return the bos token in a list where this tokenizer puts it before every text, else an empty list."""
    if tokenizer.bos_token_id is None:
        return []
    bos = [int(tokenizer.bos_token_id)]
    plain, decorated = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return bos if decorated[:1] == bos and plain[:1] != bos else []


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
    text = record.text if record.rejected is None else f"{record.text}\n(rather than: {record.rejected.completion})"
    return Example(record.id, tokens, mask, text, prompt=record.prompt)


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
            "%d of %d examples are longer than dataset.max_length=%d (longest %d) and were cut: prompts on "
            "the left, completions on the right; the first: %s",
            len(longer),
            len(parts),
            max_length,
            max(lengths),
            records[longer[0]].place,
        )
