"""What a data set is before a tokenizer has seen it: records of text, and the query sets asked about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tdaexp.runtime.errors import UserError

HELD_OUT = "held out"
"""The query set of records that no model is trained on."""


class Place(NamedTuple):
    """Where a row stands: a `file` (or a hub data set), and its `row` there, from 1 (a line, in files of lines)."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


Turn = tuple[str, str]
"""What was said in a dialogue: the role (`system`, `user`, `assistant`, …), and the text."""


@dataclass(frozen=True)
class Record:
    """One prompt-completion pair.

    `truth` names the training records that a query came from, none where that is not known; `where` is the place
    that it was read from, for messages and for whoever writes the file again. A dialogue of more than one question has
    in `said` the turns before the completion, and in `prompt` their texts. `rejected` is what a query's completion is
    compared with: the query then asks why one is likelier than the other.
    """

    id: str
    prompt: str
    completion: str
    truth: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    where: Place | None = field(default=None, compare=False)
    said: tuple[Turn, ...] = ()
    rejected: Record | None = None

    @property
    def place(self) -> str:
        """The record in messages: its id, and where it was read."""
        return f"{self.where}: example '{self.id}'" if self.where else f"example '{self.id}'"

    @property
    def text(self) -> str:
        """The record as a person would read it."""
        return f"{self.prompt}\n{self.completion}".strip()

    @property
    def content(self) -> list[Any]:
        """What a model that is trained on the record can depend on."""
        return [self.id, self.prompt, self.completion, *self.said]


class Skipped(NamedTuple):
    """A row that was left out, and why."""

    where: Place
    reason: str


@dataclass(frozen=True)
class Corpus:
    """Training records and named query sets (`paraphrased`, `generated`, …).

    `finetune` are the records of a second training stage, empty where there is one stage only: the model is trained
    on `train`, whose records are what answers are attributed to, and then on these. `skipped` are the rows that could
    not be read, where these are left out.
    """

    train: list[Record]
    queries: dict[str, list[Record]]
    finetune: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

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
                "another id column (dataset.id_column=NAME, of dataset=text also =row, the row's number)"
            )
    return ids
