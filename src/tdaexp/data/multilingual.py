"""A generated text in several languages: the same scenes told in each, most of them in English.

It stands in for a multilingual pre-training corpus where nothing can be downloaded. A record is a few sentences of one
language, each a subject, a verb, an object and a place or time, drawn from the seed; scenes are drawn anew for every
record, so that records are not translations of each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from tdaexp.data.dataset import Dataset
from tdaexp.data.groups import groups_of, stratified
from tdaexp.data.records import Record
from tdaexp.data.vocabulary import scenes
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.limits import refuse_beyond

RECORD_BYTES, SENTENCE_BYTES = 1000, 100  # of a record in memory, about
ENGLISH_SHARE = 0.5  # of the records; the other languages share the rest equally


@dataclass
class Multilingual(Dataset):
    """Generated sentences; nothing is read or downloaded.

    records: how many, held-out ones among them. held_out: so many of them no model is trained on, each language by its
    share. languages: of en, de, fr, es, it, pt; where English is one of several, half of the records are English.
    sentences: per record. seed: what everything is drawn from.
    """

    records: int = 1200
    held_out: int = 96
    languages: list[str] = field(default_factory=lambda: list(scenes()))
    sentences: int = 4
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["paraphrased"])

    PARAPHRASE_KEYS: ClassVar[str] = "dataset=text (generated sentences have none)"

    def __post_init__(self) -> None:
        """Refuse unknown languages and sizes that leave nothing to train on."""
        super().__post_init__()
        for name in self.languages:
            if name not in scenes():
                raise unknown("language", name, scenes(), "dataset.languages")
        if not self.languages:
            raise UserError("dataset.languages is empty; name at least one, e.g. [en,de]")
        if self.sentences < 1:
            raise UserError(f"dataset.sentences={self.sentences}: must be at least 1")
        if not 0 <= self.held_out < self.records:
            raise UserError(
                f"dataset.held_out={self.held_out}: must lie from 0 to below dataset.records={self.records}"
            )

    def train_records(self) -> list[Record]:
        """Return the records that are not held out; `meta` names each one's language as its group."""
        return self._split()[0]

    def held_out_records(self) -> list[Record]:
        """Return the held-out records."""
        return self._split()[1]

    def _split(self) -> tuple[list[Record], list[Record]]:
        needed = float(self.records) * (RECORD_BYTES + SENTENCE_BYTES * self.sentences)
        what = f"dataset.records={self.records} dataset.sentences={self.sentences}"
        refuse_beyond(needed, what, "take fewer")
        written = [self._write(number) for number in range(self.records)]
        chosen = set(stratified(groups_of(written), self.held_out, [self.seed], "dataset.held_out").tolist())
        train = [record for place, record in enumerate(written) if place not in chosen]
        return train, [record for place, record in enumerate(written) if place in chosen]

    def _write(self, number: int) -> Record:
        draw = random.Random(f"{self.seed} {number}")
        others = [name for name in self.languages if name != "en"]
        english = "en" in self.languages and (not others or draw.random() < ENGLISH_SHARE)
        language = "en" if english else draw.choice(others)
        said = [" ".join(draw.choice(words) for words in scenes()[language]) for _ in range(self.sentences)]
        text = " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in said)
        return Record(f"{language}-{number}", "", text, meta={"group": language})
