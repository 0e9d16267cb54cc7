"""How long a data set's examples are: all that a plan needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdaexp.data.examples import Example, Examples
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.quiet import quiet

CHARACTERS_PER_TOKEN = 4.0  # of English text in a large vocabulary, where no tokenizer is at hand
COUNTED = 1_000
"""Of more records than this a plan counts the tokens of so many, half of them the longest."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """N examples: their `tokens` [N], and how many of them are `predicted` [N] (the last ones); int64."""

    tokens: np.ndarray
    predicted: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def cut(prompt: np.ndarray, completion: np.ndarray, max_length: int) -> Sizes:
        """Sizes of prompts and completions [N] that are cut as `tokenise` cuts them."""
        given, written = np.ceil(prompt).astype(np.int64), np.maximum(1, np.ceil(completion).astype(np.int64))
        written = np.minimum(written, np.maximum(max_length - given, max_length - max_length // 2))
        tokens = np.maximum(2, np.minimum(given, max_length - written) + written)
        return Sizes(tokens, np.minimum(written, tokens - 1))

    @staticmethod
    def joined(parts: Sequence[Sizes]) -> Sizes:
        """All parts one after the other."""
        return Sizes(*(np.concatenate([getattr(one, name) for one in parts]) for name in ("tokens", "predicted")))

    @property
    def read(self) -> np.ndarray:
        """Tokens that a pass reads [N]: the last one is only predicted."""
        return self.tokens - 1

    def examples(self, name: str) -> BlankExamples:
        """Examples of these lengths, with nothing in them; `name` begins their ids."""
        longest = int(self.tokens.max(initial=1))
        tokens, mask = np.zeros(longest, dtype=np.int64), np.arange(2 * longest) >= longest  # all share them
        return BlankExamples(
            Example(f"{name}{place}", tokens[:length], mask[longest + predicted - length : longest + predicted], "")
            for place, (length, predicted) in enumerate(zip(self.tokens.tolist(), self.predicted.tolist(), strict=True))
        )


class BlankExamples(Examples):
    """Examples that are known by their lengths alone."""

    def __init__(self, items: Iterable[Example]) -> None:
        super().__init__(list(items))

    def select(self, indices: Sequence[int] | np.ndarray) -> BlankExamples:
        """The examples at `indices`, in that order."""
        return BlankExamples(self.items[int(index)] for index in indices)

    def fingerprint(self) -> str:
        """Of their names: it costs nothing."""
        return fingerprint(self.items[0].id if self.items else "", len(self))


def sizes_of(records: Sequence[Record], tokenizer: Any, *, max_length: int, loss_on: str, **settings: Any) -> Sizes:
    """Sizes of records: with a tokenizer exact (for more than `COUNTED` uncut ones see there), else from characters.

    `settings` as for `tokenise`.
    """
    if tokenizer is None:
        prompt, completion = (
            np.array([len(getattr(one, name)) for one in records]) / CHARACTERS_PER_TOKEN
            for name in ("prompt", "completion")
        )
        found = Sizes.cut(prompt, completion + 1, max_length)
        return Sizes(found.tokens, found.tokens - 1) if loss_on == "all" else found

    def counted(some: Sequence[Record]) -> Sizes:
        with quiet("tdaexp.data.tokenise", "tdaexp.data.chunks"):  # what is cut is told when it is
            examples = tokenise(some, tokenizer, max_length=max_length, loss_on=loss_on, **settings)
        return Sizes(examples.lengths, np.array([int(one.loss_mask[1:].sum()) for one in examples], dtype=np.int64))

    if len(records) <= COUNTED or settings.get("chunk") is not None:
        return counted(records)
    return _from_some(records, counted, max_length)


def _from_some(records: Sequence[Record], counted: Callable[[Sequence[Record]], Sizes], max_length: int) -> Sizes:
    """Sizes of many records: the longest, which decide the memory, and some others counted; the rest by their share."""
    characters = np.array([len(one.text) for one in records])
    order = np.argsort(-characters, kind="stable")
    longest, rest = np.split(order, [COUNTED // 2])
    others, rest = np.split(np.random.default_rng(0).permutation(rest), [COUNTED - COUNTED // 2])
    known, sample = counted([records[place] for place in longest]), counted([records[place] for place in others])
    per_character = sample.tokens.sum() / max(1, characters[others].sum())
    tokens = np.ceil(characters[rest] * per_character).clip(2, max_length).astype(np.int64)
    predicted = np.ceil(tokens * sample.predicted.sum() / sample.tokens.sum()).astype(np.int64).clip(1, tokens - 1)
    found = Sizes(np.zeros(len(records), np.int64), np.zeros(len(records), np.int64))
    for places, one in ((longest, known), (others, sample), (rest, Sizes(tokens, predicted))):
        found.tokens[places], found.predicted[places] = one.tokens, one.predicted
    return found
