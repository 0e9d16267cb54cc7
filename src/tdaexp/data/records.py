"""What a data set is before a tokenizer has seen it: records of text, and the query sets asked about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdaexp.runtime.errors import UserError

HELD_OUT = "held out"
"""The query set of records that no model is trained on."""


@dataclass(frozen=True)
class Record:
    """One prompt-completion pair.

    `truth` names the training records that a query came from, none where that is not known; `where` is the place
    that it was read from ("FILE, row N"), for messages.
    """

    id: str
    prompt: str
    completion: str
    truth: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """The record in messages: its id, and where it was read."""
        return f"{self.where}: example '{self.id}'" if self.where else f"example '{self.id}'"

    @property
    def text(self) -> str:
        """The record as a person would read it."""
        return f"{self.prompt}\n{self.completion}".strip()


@dataclass(frozen=True)
class Corpus:
    """Training records and named query sets (`paraphrased`, `generated`, …).

    `finetune` are the records of a second training stage, empty where there is one stage only: the model is trained
    on `train`, whose records are what answers are attributed to, and then on these.
    """

    train: list[Record]
    queries: dict[str, list[Record]]
    finetune: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse an empty corpus, repeated ids in it or a query set, and a truth that is not in the training set."""
        if not self.train:
            raise UserError("the data set has no training record; check dataset.path and its filters")
        ids = _distinct(self.train, "the training id", "the data set")
        for name, records in self.queries.items():
            _distinct(records, "the query id", f"query set '{name}'")
            for record in records:
                missing = [t for t in record.truth if t not in ids]
                if missing:
                    raise UserError(
                        f"query set '{name}': query '{record.id}' names the training example '{missing[0]}', "
                        "which is not in the training set; check the id columns of both"
                    )


def _distinct(records: list[Record], what: str, whole: str) -> dict[str, int]:
    """Numbers of the records by id; an id that stands twice is refused."""
    ids: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        if ids.setdefault(record.id, number) != number:
            first = ids[record.id]
            places = [records[k - 1].where or f"record {k} of {whole}" for k in (first, number)]
            raise UserError(
                f"{what} '{record.id}' stands twice, in {places[0]} and {places[1]}; make the ids unique, or name "
                "another id column"
            )
    return ids
