"""Which of a question's rows read almost the same: copies differ in case, blanks, punctuation, or a word of many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tdaexp.report.texts import Passage

NEAR = 0.9  # cosine of the counts of words and of pairs of words, of prompts and of completions alike


class Likeness:
    """Compares texts by their words: prompt with prompt, completion with completion."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts = HashingVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), alternate_sign=False)
        self.completions = counts.transform([_marked(one.completion) for one in passages] or ["_"])
        self.prompts = counts.transform([_marked(one.prompt) for one in passages] or ["_"])

    def groups(self, places: np.ndarray, count: int) -> list[list[int]]:
        """The first `count` groups of the texts at `places` [n], as positions in it, in its order.

        A text belongs to the first group whose first text it is near to.
        """
        like = _near(self.completions[places])
        if like.sum() > len(places):  # else no two completions are near
            like &= _near(self.prompts[places])
        found: dict[int, list[int]] = {}
        for place, row in enumerate(like):
            head = next((one for one in found if row[one]), place)
            if head in found or len(found) < count:
                found.setdefault(head, []).append(place)
        return list(found.values())


def _marked(text: str) -> str:
    """A text without a word as one: it is near to its copies alone."""
    return text if re.search(r"\w", text) else f"_{text.encode().hex()}"


def _near(vectors: Any) -> np.ndarray:
    return np.asarray((vectors @ vectors.T).toarray() >= NEAR)
