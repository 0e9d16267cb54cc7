"""Records into token ids and loss masks, with an exact boundary between prompt and completion.

The loss mask is True from the completion's first token on, including what closes it (the end-of-text token,
or the chat template's end of turn). Prompt and completion are tokenised as one text where that keeps the
boundary (the prompt's own tokens are then how it begins) and apart where a token would straddle it; either
way the model sees in training exactly the prompt tokens that it is given when it generates.

Examples longer than `max_length`: the completion may always have half of the length, and more where the
prompt leaves it; the prompt loses its left end, the completion its right end. How many were cut is logged.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.data.templates import resolve, splitter
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import doing, track
from tdaexp.runtime.reading import reason

log = logging.getLogger(__name__)
AT_ONCE = 256  # texts in one call of the tokenizer
SHOWN_FROM = 5_000_000  # characters, from which on progress is shown
Pair = tuple[list[int], list[int]]  # tokens of the prompt and of the completion


def tokenise(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    template: str = "auto",
    max_length: int = 512,
    loss_on: str = "completion",
    append_eos: bool = True,
) -> Examples:
    """Tokenise prompt and completion of every record with a transformers tokenizer.

    `template` is described in `tdaexp.data.templates`. A tokenizer that begins texts with a bos token does so
    here; the end-of-text token is appended where the tokenizer has one, unless `append_eos` is False or the
    template is `chat`, which closes its turns itself. `loss_on` is `completion` or `all`.

    Raises:
        UserError: an unknown template or `loss_on`, or an example without any token to predict.
    """
    if loss_on not in ("completion", "all"):
        raise unknown("value", loss_on, ("completion", "all"), "dataset.loss_on")
    check_length(max_length)
    doing(f"tokenising {len(records)} texts")
    resolved = resolve(template, tokenizer)
    bos = begins_with(tokenizer) if resolved != "chat" else []
    closing = append_eos and resolved != "chat" and tokenizer.eos_token_id is not None
    eos = [int(tokenizer.eos_token_id)] if closing else []
    pairs = [(bos + given, written + eos) for given, written in token_pairs(records, tokenizer, resolved)]
    log_lengths(pairs, max_length)
    return Examples(
        [
            make_example(record, *shorten(given, written, max_length, len(bos)), loss_on)
            for record, (given, written) in zip(records, pairs, strict=True)
        ]
    )


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
    given = [bos + ids for ids in encode([split(record)[0] for record in records], tokenizer, records)]
    for record, ids in zip(records, given, strict=True):
        if not ids:
            raise UserError(
                f"{record.place}: has no prompt to generate from; name a prompt column or set "
                "dataset.prompt_fraction, or leave 'generated' out of dataset.query_sets"
            )
    return [np.array(cut_left(ids, max_length, len(bos)), dtype=np.int64) for ids in given]


def token_pairs(records: Sequence[Record], tokenizer: Any, template: str) -> list[Pair]:
    """Tokenise every record's two parts, without bos or eos (see the module's docstring for the boundary)."""
    split = splitter(template, tokenizer)
    parts = [split(record) for record in records]
    given = encode([before for before, _ in parts], tokenizer, records)
    whole = encode([before + after for before, after in parts], tokenizer, records)
    alone = encode([after for _, after in parts], tokenizer, records)
    check_words(records, [before + after for before, after in parts], whole, tokenizer)
    return [
        (left, joint[len(left) :] if joint[: len(left)] == left else right)
        for left, joint, right in zip(given, whole, alone, strict=True)
    ]


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


def shorten(given: list[int], written: list[int], max_length: int, kept: int) -> Pair:
    """Cut a pair to `max_length` tokens; the first `kept` of the prompt (its bos) stay."""
    room = max(max_length - len(given), max_length - max_length // 2)
    written = written[:room]
    return cut_left(given, max_length - len(written), kept), written


def cut_left(ids: list[int], length: int, kept: int) -> list[int]:
    """Return the first `kept` and then the last tokens, `length` in all, where there are more."""
    if len(ids) <= length:
        return ids
    kept = min(kept, length)
    return ids[:kept] + ids[len(ids) - (length - kept) :]


def make_example(record: Record, given: list[int], written: list[int], loss_on: str) -> Example:
    """Join a pair into an example.

    Raises:
        UserError: no token carries loss.
    """
    tokens = np.array(given + written, dtype=np.int64)
    mask = np.arange(len(tokens)) >= (len(given) if loss_on == "completion" else 0)
    mask[:1] = False  # nothing comes before the first token, so it is never predicted
    if not mask.any():
        raise UserError(
            f"{record.place}: its {len(written)} completion token(s) leave nothing to predict; give "
            "it a longer completion or a prompt, remove it, or set dataset.append_eos=true"
        )
    return Example(record.id, tokens, mask, record.text, record.prompt)


def check_length(max_length: int) -> None:
    """Refuse a length that leaves nothing to predict."""
    if max_length < 2:
        raise UserError(f"dataset.max_length={max_length}: needs at least 2 tokens, one to read and one to predict")


def log_lengths(pairs: Sequence[Pair], max_length: int) -> None:
    """Say how many examples are longer than `max_length`."""
    longer = sum(len(given) + len(written) > max_length for given, written in pairs)
    if longer:
        longest = max(len(given) + len(written) for given, written in pairs)
        log.warning(
            "%d of %d examples are longer than dataset.max_length=%d (longest %d) and were cut: prompts on "
            "the left, completions on the right",
            longer,
            len(pairs),
            max_length,
            longest,
        )
