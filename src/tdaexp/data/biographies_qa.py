"""Generated biographies in two training stages, so that multi-stage influence has a known truth.

Pre-training documents are single sentences that state one fact about one person, each fact in several phrasings.
Fine-tuning teaches to answer questions, with the facts of some of the people (`taught`). Queries ask for the facts of
all others: no answer to a query occurs in the second stage beside its question or its person, so what the fine-tuned
model says about them comes from pre-training alone, and the sources of an answer are the documents that state it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from tdaexp.data.biographies import Person, draw_people
from tdaexp.data.dataset import Dataset
from tdaexp.data.records import Corpus, Record
from tdaexp.data.vocabulary import Relation, people
from tdaexp.runtime.errors import UserError


@dataclass
class BiographiesQA(Dataset):
    """Generated people, documents and questions; nothing is read or downloaded.

    people: how many people (4 to 2,400).
    taught: the share of the people whose facts the fine-tuning stage asks for; the others are queried.
    relations: facts per person, 1 to 8.
    phrasings: documents per fact, 1 to 5.
    seed: what everything is drawn from; the same keys give the same text on every machine.

    Documents and answers begin with a blank, and the template puts prompt and completion side by side: names and
    answers are then the same tokens in documents, questions and answers.
    """

    people: int = 100
    taught: float = 0.6
    relations: int = 4
    phrasings: int = 5
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["facts"])
    template: str = "{prompt}{completion}"

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("facts", "generated")
    GENERATED_FROM: ClassVar[str] = "facts"

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: a size that the vocabulary cannot serve, or a share that leaves a stage empty.
        """
        super().__post_init__()
        known = people().statements
        phrasings = min(len(relation.sentences) for relation in known)
        most = {"people": (4, people().most_people), "relations": (1, len(known)), "phrasings": (1, phrasings)}
        for key, (low, high) in most.items():
            if not low <= getattr(self, key) <= high:
                raise UserError(f"dataset.{key}={getattr(self, key)}: must lie between {low} and {high}")
        if not 1 <= self._taught() < self.people:
            raise UserError(f"dataset.taught={self.taught}: must leave people to teach and people to ask about")

    def train_records(self) -> list[Record]:
        """Return one document per fact and phrasing, in an order without pattern."""
        documents = [
            Record(
                document_id(person, relation, style),
                "",
                " " + relation.sentences[style].format(v=person.facts[relation.name], **by_name(person)),
                (),
                {"person": person.name, "relation": relation.name},
            )
            for person in self._people()
            for relation in self._relations()
            for style in range(self.phrasings)
        ]
        return random.Random(f"{self.seed} documents").sample(documents, len(documents))

    def finetune_records(self) -> list[Record]:
        """Return one question per fact of the taught people."""
        return self._questions(self._people()[: self._taught()])

    def load(self) -> Corpus:
        """Return documents, questions about the people who are not taught, and the fine-tuning records."""
        return Corpus(
            self.train_records(),
            {"facts": self._questions(self._people()[self._taught() :])},
            self.finetune_records(),
        )

    def _questions(self, asked: list[Person]) -> list[Record]:
        return [
            Record(
                f"{fact_id(person, relation)}/question",
                relation.question.format(name=person.name),
                f" {person.facts[relation.name]}.",
                tuple(document_id(person, relation, style) for style in range(self.phrasings)),
                {"person": person.name, "relation": relation.name, "answer": person.facts[relation.name]},
            )
            for person in asked
            for relation in self._relations()
        ]

    def _people(self) -> list[Person]:
        return draw_people(self.people, self.seed)

    def _taught(self) -> int:
        return round(self.taught * self.people)

    def _relations(self) -> tuple[Relation, ...]:
        return people().statements[: self.relations]


def fact_id(person: Person, relation: Relation) -> str:
    """Id of a fact, as in `anna-keller-pet`."""
    return f"{person.name.lower().replace(' ', '-')}-{relation.name}"


def document_id(person: Person, relation: Relation, style: int) -> str:
    """Id of the document that states a fact in one phrasing, as in `anna-keller-pet-0`."""
    return f"{fact_id(person, relation)}-{style}"


def by_name(person: Person) -> dict[str, str]:
    """Placeholders of a sentence that stands alone: the full name everywhere."""
    whose = f"{person.name}'s"
    return {"S": person.name, "s": person.name, "o": person.name, "P": whose, "p": whose}
