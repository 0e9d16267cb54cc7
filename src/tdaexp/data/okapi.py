"""BM25 scores as rank_bm25's BM25Okapi gives them, by that library or by a sparse index."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

K1, B, EPSILON = 1.5, 0.75, 0.25  # saturation, length normalisation, floor of the weights of common words
Scorer = Callable[[list[str]], np.ndarray]  # the query's words -> BM25 scores of the N training examples, float64


def okapi(corpus: list[list[str]]) -> Scorer:
    """Index words with rank_bm25's BM25Okapi and its defaults, which are also this module's constants."""
    from rank_bm25 import BM25Okapi

    scorer: Scorer = BM25Okapi(corpus, k1=K1, b=B, epsilon=EPSILON).get_scores
    return scorer


def sparse_okapi(corpus: list[list[str]]) -> Scorer:
    """Index words with bm25s so that scores equal BM25Okapi's.

    bm25s has Okapi's term weights (`atire`) and its word weights (`robertson`), float64 on request, except that a word
    in more than half of the examples weighs nothing where BM25Okapi gives it `EPSILON` times the mean weight of all
    words. Such words are few, so their part is added from a dense matrix [N, common words].
    """
    import bm25s

    retriever = bm25s.BM25(k1=K1, b=B, method="atire", idf_method="robertson", dtype="float64")
    retriever.index(corpus, show_progress=False)
    within = [Counter(words) for words in corpus]
    spread = Counter(word for counts in within for word in counts)
    weight = {word: math.log(len(corpus) - n + 0.5) - math.log(n + 0.5) for word, n in spread.items()}
    common = {word: column for column, word in enumerate(word for word in weight if weight[word] < 0)}
    frequency = np.array([[counts[word] for word in common] for counts in within], dtype=np.float64)
    length = np.array([len(words) for words in corpus])
    damping = K1 * (1 - B + B * length / length.mean())
    floor = EPSILON * sum(weight.values()) / len(weight)
    part = floor * frequency * (K1 + 1) / (frequency + damping[:, None])

    def scorer(words: list[str]) -> np.ndarray:
        columns = [common[word] for word in words if word in common]
        return np.asarray(retriever.get_scores_from_ids(retriever.get_tokens_ids(words)) + part[:, columns].sum(axis=1))

    return scorer
