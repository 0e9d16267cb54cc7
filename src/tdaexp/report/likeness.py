"""Which of a question's rows read almost the same: copies differ in case, blanks, punctuation, or a word of many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tdaexp.report.texts import Passage

NEAR = 0.9  # cosine of the counts of words and of pairs of words, of prompts and of completions alike
FOLDED = 512


class Likeness:
    """Compares texts by their words: prompt with prompt, completion with completion."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts = HashingVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), alternate_sign=False)
        self.completions = counts.transform([_marked(one.completion) for one in passages] or ["_"])
        self.folded = _folded(self.completions)
        self.prompts = counts.transform([_marked(one.prompt) for one in passages] or ["_"])

    def groups(self, places: np.ndarray, count: int) -> list[list[int]]:
        """The first `count` groups of the texts at `places` [n], as positions in it, in its order.

        A text belongs to the first group whose first text it is near to.
        """
        like = self._like(places)
        found: dict[int, list[int]] = {}
        for place, row in enumerate(like):
            head = next((one for one in found if row[one]), place)
            if head in found or len(found) < count:
                found.setdefault(head, []).append(place)
        return list(found.values())

    def _like(self, places: np.ndarray) -> np.ndarray:
        """Which texts [n, n] are near to each other."""
        few = self.folded[places]
        if (few @ few.T >= NEAR).sum() <= len(places):  # as with most: no two completions are near
            return np.eye(len(places), dtype=bool)
        return np.asarray(_near(self.completions[places]) & _near(self.prompts[places]))


def _folded(counts: Any) -> np.ndarray:
    """Dense vectors [n, FOLDED] whose products are never below those of the counts, which are positive."""
    from scipy.sparse import csr_matrix

    shape = (counts.shape[0], FOLDED)
    return np.asarray(csr_matrix((counts.data, counts.indices % FOLDED, counts.indptr), shape).toarray())


def _marked(text: str) -> str:
    """A text without a word as one: it is near to its copies alone."""
    return text if re.search(r"\w", text) else f"_{text.encode('utf-8', 'surrogatepass').hex()}"


def _near(vectors: Any) -> np.ndarray:
    return np.asarray((vectors @ vectors.T).toarray() >= NEAR)
