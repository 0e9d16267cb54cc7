"""What every data set has in common: how its text becomes tokens, and which query sets are asked of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tdaexp.data import templates
from tdaexp.data.assumed import Assumed
from tdaexp.data.chunks import LEAST_CHUNK
from tdaexp.data.limits import check_limits
from tdaexp.data.paraphrase import paraphrase_records
from tdaexp.data.records import Corpus, Record, Skipped
from tdaexp.runtime.errors import UserError, check_distinct, unknown

LOSS_ON = ("completion", "all")
MEAN = "mean"
"""How the questions of a set can be combined, and the id of the one that they become."""
GENERATED = "generated"
"""The query set that the model under study writes itself."""


def query_id(train_id: str, query_set: str) -> str:
    """Id of the query that was made from one training record: unique across query sets and training ids."""
    return f"{train_id}/{query_set}"


@dataclass
class Dataset(ABC):
    """Keys that every data set reads.

    query_sets: the query sets of the run, of `paraphrased` (the training records in other words), `generated`
        (the model's own completions of the paraphrased prompts) and what the data set adds.
    query_limit: draw that many queries of each set at random (null: all).
    query_seed: the seed of that draw (null: the run's).
    combine: `mean` makes one question of each set, the mean of their measurements (null: each is asked by itself).
    paraphrase: a provider that rewrites the training records (`_target_` of one in
        `tdaexp.data.paraphrasers`), or null to take the data's own paraphrases.
    template: how prompt and completion become one text: `auto` (the model's own `template`), `chat`, `plain`,
        `olmo`, or a format string with `{prompt}` and `{completion}`.
    max_length: the most tokens of an example (a model with a shorter context sets its own limit); the prompt
        is cut on its left, then the completion on its right.
    chunk: cut training texts into pieces of so many tokens that add up to them, instead (null: no).
    turns: of dialogues, the assistant's turns that carry loss: `all`, or the `last`.
    loss_on: `completion` or `all` (prompt too).
    append_eos: end every completion with the tokenizer's end-of-text token where it has one.
    assumed: sizes for a plan where the data is not at hand (null: a plan needs the data).
    """

    query_sets: list[str] = field(default_factory=lambda: ["paraphrased", "generated"])
    query_limit: int | None = None
    query_seed: int | None = None
    combine: str | None = None
    paraphrase: Any = field(default=None, metadata={"offers": ("settings", "paraphrase", "cache")})
    template: str = "auto"
    max_length: int = 512
    chunk: int | None = None
    turns: str = "all"
    loss_on: str = "completion"
    append_eos: bool = True
    assumed: Assumed | None = None

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("paraphrased", "generated")
    PARAPHRASE_KEYS: ClassVar[str] = "a key of the data set"
    """The keys that bring the data's own paraphrases, for a message."""
    GENERATED_FROM: ClassVar[str] = "paraphrased"  # the query set whose prompts the model completes itself

    def __post_init__(self) -> None:
        """Check the values that every data set shares.

        Raises:
            UserError: an unknown query set, template or loss position, or a length that leaves nothing to predict.
        """
        self.query_sets = list(self.query_sets)
        for name in self.query_sets:
            if name not in self.known_sets:
                raise unknown("query set", name, self.known_sets, "dataset.query_sets")
        check_distinct(self.query_sets, lambda: "dataset.query_sets")
        templates.check(self.template)
        check_limits(self, "query_limit")
        if self.chunk is not None and self.chunk < LEAST_CHUNK:
            raise UserError(
                f"dataset.chunk={self.chunk}: must be at least {LEAST_CHUNK} tokens (or null, to cut nothing)"
            )
        if self.turns not in templates.TURNS:
            raise unknown("value", self.turns, templates.TURNS, "dataset.turns")
        if self.query_seed is not None and self.query_seed < 0:
            raise UserError(f"dataset.query_seed={self.query_seed}: must be at least 0 (or null for the run's seed)")
        if self.combine not in (None, MEAN):
            raise unknown("value", self.combine, (MEAN, "null"), "dataset.combine")
        if self.loss_on not in LOSS_ON:
            raise unknown("value", self.loss_on, LOSS_ON, "dataset.loss_on")
        if self.max_length < 2:
            raise UserError(
                f"dataset.max_length={self.max_length}: needs at least 2, one token to read, one to predict"
            )

    @property
    def at_hand(self) -> bool:
        """Whether `train_records` needs no network."""
        return True

    def check_source(self) -> None:
        """Refuse, before a run, a configuration that names no data; a plan may do with `assumed` sizes."""
        return

    @property
    def known_sets(self) -> tuple[str, ...]:
        """The query sets that there may be."""
        return self.QUERY_SETS

    @property
    def generated_from(self) -> str:
        """The query set whose prompts the model completes itself."""
        return self.GENERATED_FROM

    @abstractmethod
    def train_records(self) -> list[Record]:
        """Read or generate the training records, without any query set."""

    def own_paraphrases(self, train: Sequence[Record]) -> list[Record] | None:
        """Return the paraphrased queries that the data itself holds, or None where it holds none."""
        return None

    def finetune_records(self) -> list[Record]:
        """Return the records of a second training stage; most data has none."""
        return []

    def held_out_records(self) -> list[Record]:
        """Return records of the same kind that no model is trained on; most data has none."""
        return []

    def skipped_rows(self) -> list[Skipped]:
        """Return the rows that were left out because they cannot be read."""
        return []

    def load(self) -> Corpus:
        """Return the training records and the query sets that need no model.

        The set that `generated` is made from is there whenever `query_sets` names it or `generated`.

        Raises:
            UserError: bad files or values; or paraphrases are asked for and there are none.
        """
        train, own = self.train_records(), self.generated_from
        queries = {}
        if {own, GENERATED} & set(self.query_sets):
            queries[own] = self._paraphrased(train)
        return Corpus(train, queries, self.finetune_records(), self.skipped_rows())

    def _paraphrased(self, train: list[Record]) -> list[Record]:
        if self.paraphrase is not None:
            rewritten = paraphrase_records(train, self.paraphrase)
            return [as_query(record, source) for record, source in zip(rewritten, train, strict=True)]
        own = self.own_paraphrases(train)
        if own is None:
            raise UserError(
                f"dataset.query_sets={self.query_sets}: this data has no paraphrases to ask about; give them with "
                f"{self.PARAPHRASE_KEYS}, or have them written (+dataset/paraphrase=openai or =local)"
            )
        return own


def as_query(rewritten: Record, source: Record, query_set: str = "paraphrased") -> Record:
    """Make a query of a rewritten record: its own id, and the source as its truth."""
    return dataclasses.replace(rewritten, id=query_id(source.id, query_set), truth=(source.id,), meta=source.meta)
