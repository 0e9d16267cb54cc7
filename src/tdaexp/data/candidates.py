"""Which (query, training example) pairs are worth a gradient: BM25's best, or all of them (`nearest` has others).

Source: Select or Project (Hinterleitner et al. 2026), appendix B.1, Algorithm 1: the b lexically nearest
training examples; where the query's source is not among them it takes the place of the weakest.

Ties. Equal BM25 scores are frequent (namesakes, repeated prompts), and numpy's default argsort, which the
usual `np.argsort(scores)[::-1][:b]` rests on, is not stable: which of the tied examples it keeps depends on
the array's length, numpy's version and the processor's vector instructions. Here ties go by training order,
the earlier example first, and the weakest candidate is the last in that order.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tdaexp.data.okapi import Scorer, okapi, sparse_okapi
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import doing, track

log = logging.getLogger(__name__)
FIELDS: dict[str, Callable[[Record], str]] = {
    "prompt": lambda record: record.prompt,
    "completion": lambda record: record.completion,
    "text": lambda record: record.text,
}
Ranking = Callable[[int, Sequence[int]], np.ndarray]  # a query's row and its sources' positions -> scores [N]


@dataclass(frozen=True)
class Candidates:
    """The pairs to compute: `indices` [Q, C] int64 into the training list, best first, -1 where a query has
    fewer; `bm25` [Q, C] float64 are the same pairs' lexical scores, NaN where there is no candidate.
    """

    indices: np.ndarray
    bm25: np.ndarray


@dataclass
class Lexical(ABC):
    """Keys that every lexical index reads.

    field: what is compared, `prompt` (as in the paper), `completion` or `text` (both). When no training
        record has a prompt, `prompt` means `text`.
    lowercase: fold case first; the paper keeps it. Words are what whitespace separates.
    ensure_truth: put a query's sources among its candidates where BM25 missed them.
    """

    field: str = "prompt"
    lowercase: bool = False
    ensure_truth: bool = True

    def __post_init__(self) -> None:
        """Check the field's name.

        Raises:
            UserError: an unknown field.
        """
        if self.field not in FIELDS:
            raise unknown("field", self.field, FIELDS, "candidates.field")

    @abstractmethod
    def index(self, corpus: list[list[str]]) -> Scorer:
        """Index the training examples' words; return what scores a query's words against them."""

    def ranking(self, queries: Sequence[Record], train: Sequence[Record], name: str) -> Ranking | None:
        """What pairs are chosen by, from the field `name`; None: by their BM25 scores."""
        return None

    def content(self) -> str:
        """What the candidates depend on beside the keys and the texts, such as the weights in a folder."""
        return ""

    def size(self, train: Sequence[Record]) -> int:
        """Return how many candidates a query gets."""
        return len(train)

    def select(self, queries: list[Record], train: list[Record]) -> Candidates:
        """Return the candidates of every query, columns in order of falling score (BM25's, or the ranking's).

        Raises:
            UserError: the compared field is empty in every training example.
        """
        name = self.field
        if name == "prompt" and not any(record.prompt.strip() for record in train):
            log.info("no training record has a prompt: BM25 compares the whole text")
            name = "text"
        doing(f"indexing the words of {len(train)} training examples")
        corpus = [self.words(record, name) for record in train]
        if not any(corpus):
            raise UserError(
                f"candidates.field={self.field}: empty in every training example; try candidates.field=text"
            )
        scorer, ranking = self.index(corpus), self.ranking(queries, train, name)
        position = {record.id: index for index, record in enumerate(train)}
        size = self.size(train)
        indices = np.full((len(queries), size), -1, dtype=np.int64)
        scores = np.full((len(queries), size), np.nan)
        for row, query in enumerate(track(queries, "candidates", len(queries))):
            score = scorer(self.words(query, name))
            truth = [position[source] for source in query.truth] if self.ensure_truth else []
            indices[row] = top(score if ranking is None else ranking(row, truth), size, truth)
            scores[row] = score[indices[row]]
        return Candidates(indices, scores)

    def words(self, record: Record, name: str) -> list[str]:
        """Return the words of a record's compared field."""
        text = FIELDS[name](record)
        return (text.lower() if self.lowercase else text).split()


def top(score: np.ndarray, size: int, truth: Sequence[int] = ()) -> np.ndarray:
    """Return the `size` best positions of `score` [N] with those of `truth` among them, best first.

    This is Algorithm 1. A source that is missing takes the place of the weakest candidate that is not itself
    a source; of more than `size` sources the best remain.
    """
    order = np.argsort(-score, kind="stable")
    wanted = np.isin(order, np.asarray(truth, dtype=np.int64))
    sources, others = order[wanted][:size], order[~wanted]
    kept = np.concatenate([sources, others[: size - len(sources)]])
    return kept[np.lexsort((kept, -score[kept]))]


@dataclass
class BM25(Lexical):
    """The b best by rank_bm25's BM25Okapi with its defaults, as in the paper; O(Q · words · N) in Python.

    b: candidates per query (5 in the paper).
    """

    b: int = 5

    def __post_init__(self) -> None:
        """Check the field and the size.

        Raises:
            UserError: an unknown field, or b < 1.
        """
        super().__post_init__()
        if self.b < 1:
            raise UserError(f"candidates.b={self.b}: needs at least 1 candidate per query")

    def size(self, train: Sequence[Record]) -> int:
        """Return b, or the number of training examples where that is smaller."""
        return min(self.b, len(train))

    def index(self, corpus: list[list[str]]) -> Scorer:
        """Index with rank_bm25."""
        return okapi(corpus)


@dataclass
class BM25S(BM25):
    """The same by bm25s, whose index is a sparse matrix: for corpora where rank_bm25 takes minutes.

    The scores equal BM25Okapi's up to rounding (1e-12, which can order near-ties differently).
    """

    def index(self, corpus: list[list[str]]) -> Scorer:
        """Index with bm25s."""
        return sparse_okapi(corpus)


@dataclass
class Sample(BM25S):
    """b training examples at random, the same for every query: for comparing whole rankings (Bao et al. 2025, 5.1).

    seed: of the draw.
    """

    b: int = 500
    ensure_truth: bool = False
    seed: int = 0

    def ranking(self, queries: Sequence[Record], train: Sequence[Record], name: str) -> Ranking:
        """One random order for all queries."""
        order = np.random.default_rng(self.seed).random(len(train))
        return lambda row, truth: order


@dataclass
class All(Lexical):
    """Every training example, in order of falling BM25 score; for small corpora and for checking.

    index_with: `rank_bm25` or `bm25s`, where the scores come from.
    """

    index_with: str = "rank_bm25"

    INDEXES: ClassVar[tuple[str, ...]] = ("rank_bm25", "bm25s")

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            UserError: an unknown field or index.
        """
        super().__post_init__()
        if self.index_with not in self.INDEXES:
            raise unknown("index", self.index_with, self.INDEXES, "candidates.index_with")

    def index(self, corpus: list[list[str]]) -> Scorer:
        """Index with the library that `index_with` names."""
        return okapi(corpus) if self.index_with == "rank_bm25" else sparse_okapi(corpus)
