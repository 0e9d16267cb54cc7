"""Texts into token ids: the parts of a record, with an exact boundary between them.

What a model is given and what it writes are tokenised as one text where that keeps the boundary (the tokens of what
comes before are then how the whole begins) and apart where a token would straddle it; either way the model sees in
training exactly the prompt tokens that it is given when it generates.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from tdaexp.data.records import Record
from tdaexp.data.templates import splitter
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track
from tdaexp.runtime.reading import reason

AT_ONCE = 256  # texts in one call of the tokenizer
SHOWN_FROM = 5_000_000  # characters, from which on progress is shown


class Parts(NamedTuple):
    """Tokens `given` to the model and `written` by it; `spoken`: which of the given ones it wrote itself before."""

    given: list[int]
    written: list[int]
    spoken: list[bool] | None = None


def token_parts(records: Sequence[Record], tokenizer: Any, template: str, turns: str = "all") -> list[Parts]:
    """Tokenise every record's parts, without bos or eos (see the module's docstring for the boundaries)."""
    split = splitter(template, tokenizer, turns)
    texts = [split(record) for record in records]
    whole = encode(["".join(parts) for parts in texts], tokenizer, records)
    check_words(records, ["".join(parts) for parts in texts], whole, tokenizer)
    # what comes before each part but the first: where its tokens begin the whole, the part begins behind them
    owners = [row for row, parts in enumerate(texts) for _ in parts[1:]]
    before = ["".join(parts[:k]) for parts in texts for k in range(1, len(parts))]
    starts: list[list[int]] = [[0] for _ in records]
    first: list[list[int]] = [[] for _ in records]
    fits = [True] * len(records)
    for row, ids in zip(owners, encode(before, tokenizer, [records[row] for row in owners]), strict=True):
        first[row] = first[row] or ids
        fits[row] &= whole[row][: len(ids)] == ids
        starts[row].append(len(ids))
    pieces = [
        [ids[a:b] for a, b in itertools.pairwise([*cuts, len(ids)])] for ids, cuts in zip(whole, starts, strict=True)
    ]
    apart = [row for row, fit in enumerate(fits) if not fit]
    owners = [row for row in apart for _ in texts[row][1:]]
    rest = [part for row in apart for part in texts[row][1:]]
    alone = iter(encode(rest, tokenizer, [records[row] for row in owners]))
    for row in apart:
        pieces[row] = [first[row], *(next(alone) for _ in texts[row][1:])]
    return [joined(parts) for parts in pieces]


def joined(pieces: list[list[int]]) -> Parts:
    """The pieces `given, written, given, …` before the last one, and that."""
    if len(pieces) == 2:
        return Parts(pieces[0], pieces[1])
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
