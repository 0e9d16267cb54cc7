"""What generated texts are made of, `generated/*.yaml`, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

Words = tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its name, the sentences that state it, the question that asks for it."""

    name: str
    sentences: Words
    question: str


@dataclass(frozen=True)
class Topic:
    """The facts that one training record states, and the themes that a prompt can put them under."""

    name: str
    themes: Words
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Vocabulary:
    """Of generated people: words by kind, frames of prompts, clues by relation, topics, and stand-alone statements."""

    words: Mapping[str, Words]
    frames: Words
    clues: Mapping[str, Words]
    topics: tuple[Topic, ...]
    statements: tuple[Relation, ...]

    @property
    def most_people(self) -> int:
        """How many full names there are."""
        return (len(self.words["female"]) + len(self.words["male"])) * len(self.words["last"])


@dataclass(frozen=True)
class Tasks:
    """Of generated instructions: the sentences that close a request, and the wording of every task by its name."""

    closings: Words
    tasks: Mapping[str, str]


@cache
def instructions() -> Tasks:
    """What instructions are made of."""
    read = _read("instructions.yaml")
    return Tasks(tuple(read["closings"]), read["tasks"])


@cache
def people() -> Vocabulary:
    """What biographies are made of."""
    read = _read("people.yaml")
    return Vocabulary(
        {kind: tuple(text.split()) for kind, text in read["words"].items()},
        tuple(read["frames"]),
        {relation: tuple(wordings) for relation, wordings in read["clues"].items()},
        tuple(Topic(name, tuple(one["themes"]), _relations(one["relations"])) for name, one in read["topics"].items()),
        _relations(read["statements"]),
    )


@cache
def scenes() -> dict[str, tuple[Words, ...]]:
    """By language: subjects, verbs (third person, past), objects, places and times."""
    return {name: tuple(map(tuple, parts.values())) for name, parts in _read("scenes.yaml").items()}


def _relations(read: dict[str, Any]) -> tuple[Relation, ...]:
    return tuple(Relation(name, tuple(one["sentences"]), one["question"]) for name, one in read.items())


def _read(name: str) -> dict[str, Any]:
    text = files("tdaexp.data").joinpath("generated", name).read_text(encoding="utf-8")
    return dict(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
