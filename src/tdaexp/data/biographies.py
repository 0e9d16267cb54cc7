"""Generated biographies: people, facts and several phrasings of each, so that every source is known exactly.

A training record is one person and one topic: a prompt, and a completion that states the topic's facts one
sentence each. Its paraphrase states the same facts in another style: another frame and theme in the prompt,
other sentences in the completion. A prompt's frame announces its completion's style, so that what a trained
model is unsure of is facts and not wording; and every style is seen in training with other people, so that a
paraphrased query is new as a whole and made of known parts, as it would be for a pre-trained model. First
names, last names, cities and employers are shared by many people while full names are unique, which gives
every query lexical neighbours that are about somebody else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tdaexp.data.dataset import Dataset, query_id
from tdaexp.data.records import Corpus, Record
from tdaexp.data.vocabulary import Relation, Topic, people
from tdaexp.runtime.errors import UserError

YEARS_OF_BIRTH = range(1940, 1980)
SHE = {"S": "She", "s": "she", "o": "her", "P": "Her", "p": "her"}
HE = {"S": "He", "s": "he", "o": "him", "P": "His", "p": "his"}


@dataclass(frozen=True)
class Person:
    """One generated person; `facts` maps a relation's name to its answer as written in the text."""

    name: str
    female: bool
    facts: dict[str, str]


@dataclass
class Biographies(Dataset):
    """Generated biographies; nothing is read or downloaded.

    people: how many people (2 to 2,400).
    topics: records per person, 1 to 6, in the order origins, work, leisure, home, studies, travel.
    facts: facts (sentences) per record, 1 to 3.
    seed: what everything is drawn from; the same keys give the same text on every machine.

    `query_sets` may also name `facts`: one question per fact, whose truth is the record that states it.
    """

    people: int = 300
    topics: int = 2
    facts: int = 3
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["paraphrased", "generated"])

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("paraphrased", "generated", "facts")

    def __post_init__(self) -> None:
        """Check the sizes against the vocabulary.

        Raises:
            UserError: a size that the vocabulary cannot serve.
        """
        super().__post_init__()
        most = {"people": (2, people().most_people), "topics": (1, len(people().topics)), "facts": (1, 3)}
        for key, (low, high) in most.items():
            if not low <= getattr(self, key) <= high:
                raise UserError(f"dataset.{key}={getattr(self, key)}: must lie between {low} and {high}")

    def train_records(self) -> list[Record]:
        """Return one record per person and topic, people outermost."""
        return self._write()[0]

    def own_paraphrases(self, train: Sequence[Record]) -> list[Record]:
        """Return the same facts in other words, one query per training record."""
        return self._write()[1]

    def load(self) -> Corpus:
        """Return training records and query sets, `facts` among them when it is asked for."""
        corpus = super().load()
        if "facts" in self.query_sets:
            corpus.queries["facts"] = self.fact_queries()
        return corpus

    def fact_queries(self) -> list[Record]:
        """Return one question per stated fact; `truth` is the record that states it.

        `meta` has `person`, `relation` and `answer`.
        """
        return [
            Record(
                query_id(record_id(person, topic), relation.name),
                relation.question.format(name=person.name),
                f"{person.facts[relation.name]}.",
                (record_id(person, topic),),
                {"person": person.name, "relation": relation.name, "answer": person.facts[relation.name]},
            )
            for person in draw_people(self.people, self.seed)
            for topic in people().topics[: self.topics]
            for relation in topic.relations[: self.facts]
        ]

    def _write(self) -> tuple[list[Record], list[Record]]:
        """Write every record twice, in phrasings that differ sentence by sentence."""
        train, paraphrased = [], []
        for person in draw_people(self.people, self.seed):
            for topic in people().topics[: self.topics]:
                name = record_id(person, topic)
                rng = random.Random(f"{self.seed} {name}")
                relations = topic.relations[: self.facts]
                styles = rng.sample(range(len(people().frames)), 2)
                first, second = two_prompts(person, topic, styles, rng)
                stated, restated = (completion(person, relations, style) for style in styles)
                meta = {
                    "person": person.name,
                    "topic": topic.name,
                    "relation": [relation.name for relation in relations],
                    "answer": [person.facts[relation.name] for relation in relations],
                }
                train.append(Record(name, first, stated, (), meta))
                paraphrased.append(Record(query_id(name, "paraphrased"), second, restated, (name,), meta))
        return train, paraphrased


def record_id(person: Person, topic: Topic) -> str:
    """Id of the record of one person and topic, as in `anna-keller-work`."""
    return f"{person.name.lower().replace(' ', '-')}-{topic.name}"


def two_prompts(person: Person, topic: Topic, styles: list[int], rng: random.Random) -> tuple[str, str]:
    """Ask for the topic in two styles, with another theme and wording of the clue in each.

    The clue is a fact from outside the topic. It stands in both prompts, as content words outlive a paraphrase.
    """
    inside = {relation.name for relation in topic.relations}
    clues, frames = people().clues, people().frames
    clue = rng.choice([relation for relation in clues if relation not in inside])
    themes, wordings = rng.sample(topic.themes, 2), rng.sample(clues[clue], 2)
    who = [f"{person.name} {wording.format(v=person.facts[clue])}" for wording in wordings]
    first, second = (frames[styles[k]].format(theme=themes[k].format(who=who[k])) for k in (0, 1))
    return first, second


def completion(person: Person, relations: tuple[Relation, ...], style: int) -> str:
    """State one relation per sentence in a style: the full name in the first, pronouns in the others."""
    subject, possessive = person.name, f"{person.name}'s"
    words = {"S": subject, "s": subject, "o": subject, "P": possessive, "p": possessive}
    sentences = []
    for relation in relations:
        sentences.append(relation.sentences[style].format(v=person.facts[relation.name], **words))
        words = SHE if person.female else HE
    return " ".join(sentences)


def draw_people(count: int, seed: int) -> list[Person]:
    """Draw people with unique full names and a fact for every relation of every topic.

    Friends and travel companions are other people of the same draw. The first `count` names of a seed do not
    depend on how many topics or facts are written down.
    """
    rng = random.Random(f"{seed} people")
    words = people().words
    given = [(name, True) for name in words["female"]] + [(name, False) for name in words["male"]]
    full = rng.sample([(f"{first} {last}", female) for first, female in given for last in words["last"]], count)
    friends, companions = (cyclic_order([name for name, _ in full], rng) for _ in range(2))
    drawn = []
    for name, female in full:
        facts = draw_facts(rng)
        drawn.append(Person(name, female, facts | {"friend": friends[name], "companion": companions[name]}))
    return drawn


def cyclic_order(names: list[str], rng: random.Random) -> dict[str, str]:
    """Map every person to another one, along one random circle through all of them."""
    circle = rng.sample(names, len(names))
    return dict(zip(circle, circle[1:] + circle[:1], strict=True))


def draw_facts(rng: random.Random) -> dict[str, str]:
    """Draw the answers that do not name another person."""
    words, born = people().words, rng.choice(YEARS_OF_BIRTH)
    return {
        "birth_city": rng.choice(words["cities"]),
        "birth_year": str(born),
        "parent": rng.choice(words["professions"]),
        "profession": rng.choice(words["professions"]),
        "employer": rng.choice(words["employers"]),
        "work_city": rng.choice(words["cities"]),
        "street": rng.choice(words["streets"]),
        "pet": rng.choice(words["pets"]),
        "hobby": rng.choice(words["hobbies"]),
        "instrument": rng.choice(words["instruments"]),
        "food": rng.choice(words["foods"]),
        "subject": rng.choice(words["subjects"]),
        "university_city": rng.choice(words["cities"]),
        "graduation_year": str(born + rng.randrange(21, 26)),
        "country": rng.choice(words["countries"]),
        "travel_year": str(born + rng.randrange(26, 36)),
    }
