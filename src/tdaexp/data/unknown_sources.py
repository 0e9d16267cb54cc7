"""The usual candidates: BM25's best where questions have known sources, every training example where they have none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdaexp.data.candidates import BM25, All, Candidates, Lexical
from tdaexp.data.records import Record

log = logging.getLogger(__name__)
USUAL = 5  # in the paper


@dataclass
class Auto(BM25):
    """What suits the questions: those with known sources are judged by whether their source ranks first among `b`
    candidates; of the others one asks which training examples matter, and those need share no word with the question.

    b: candidates per query (null: 5, or all where no question's source is known).
    """

    b: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check the field, and the size where it is named."""
        if self.b is None:
            Lexical.__post_init__(self)
        else:
            super().__post_init__()

    def settled(self, queries: Sequence[Record]) -> Lexical:
        """The candidates that the queries get."""
        common: dict[str, Any] = {name: getattr(self, name) for name in ("field", "lowercase", "ensure_truth")}
        if self.b is None and not any(query.truth for query in queries):
            return All(**common)
        return BM25(b=self.b or USUAL, **common)

    def size(self, train: Sequence[Record]) -> int:
        """Return how many candidates a query with a known source gets."""
        return min(self.b or USUAL, len(train))

    def select(self, queries: list[Record], train: list[Record]) -> Candidates:
        """Return the candidates of every query."""
        return self.settled(queries).select(queries, train)


def settled(selector: Any, queries: Sequence[Record]) -> Any:
    """The candidates that are configured; where that is `auto`, those that it stands for."""
    return selector.settled(queries) if isinstance(selector, Auto) else selector


def tell(selector: Any, queries: Sequence[Record], train: int) -> None:
    """Say what `auto` (the selector that is configured) stands for, where questions have no known source: how many
    pairs, or that rows are left out of them.
    """
    unknown = sum(not query.truth for query in queries)
    if not isinstance(selector, Auto) or not unknown:
        return
    if isinstance(selector.settled(queries), All):
        log.info(
            "candidates: all %s training examples for each of %s questions (%s pairs), as no question's source is "
            "known; fewer: candidates.b=N",
            f"{train:,}",
            f"{len(queries):,}",
            f"{train * len(queries):,}",
        )
    elif selector.b is None:
        log.info(
            "candidates: BM25's best %d of %s training examples for each question, also for the %d of %d whose source "
            "is not known; to look at every example: candidates=all",
            min(USUAL, train),
            f"{train:,}",
            unknown,
            len(queries),
        )
