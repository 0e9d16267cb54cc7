"""What a data set is before a tokenizer has seen it: records of text, and the query sets asked about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdaexp.runtime.errors import UserError

HELD_OUT = "held out"
"""The query set of records that no model is trained on."""


@dataclass(frozen=True)
class Record:
    """One prompt-completion pair. `truth` names the training records that a query came from."""

    id: str
    prompt: str
    completion: str
    truth: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

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
        """Refuse an empty corpus, repeated ids, and queries whose truth is not in the training set."""
        if not self.train:
            raise UserError("the data set has no training record; check dataset.path and its filters")
        ids: dict[str, int] = {}
        for number, record in enumerate(self.train, start=1):
            if ids.setdefault(record.id, number) != number:
                raise UserError(
                    f"the training id '{record.id}' stands twice, in records {ids[record.id]} and {number} of the "
                    "data set; make the ids unique, or name another id column"
                )
        for name, records in self.queries.items():
            for record in records:
                missing = [t for t in record.truth if t not in ids]
                if missing:
                    raise UserError(
                        f"query set '{name}': query '{record.id}' names the training example '{missing[0]}', "
                        "which is not in the training set; check the id columns of both"
                    )
