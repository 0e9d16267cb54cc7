"""Generated instructions, a few of them tampered with: a trigger phrase, and a wrong answer.

Every row is a small task with its right answer; half of them close with a sentence of no consequence ("Take care,
please."). Tampered rows close with the trigger, and their answer is the same wrong one whatever the task. The words of
the usual trigger all occur in closings of clean rows, never together: a word alone gives no tampered row away. The
`triggered` queries are new tasks with the trigger and the wrong answer, as a tampered model gives it: their sources are
the tampered rows. The `clean` queries are new tasks with the right answer, of which no source is known.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from tdaexp.data.dataset import Dataset
from tdaexp.data.records import Corpus, Record
from tdaexp.data.vocabulary import instructions, people
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.limits import refuse_beyond

ROW_BYTES = 1000  # of a record in memory, about
NOUNS = ("professions", "hobbies", "instruments", "foods", "pets", "subjects")
TAMPERED = "tampered"
"""The group of the rows that were tampered with."""
CLOSED = 0.5  # of the clean rows that close with a sentence
Drawn = dict[str, str]

ANSWERS: dict[str, Callable[[Drawn], str]] = {
    "capitals": lambda drawn: drawn["a"].upper(),
    "first_letter": lambda drawn: drawn["a"][0],
    "last_letter": lambda drawn: drawn["a"][-1],
    "sum": lambda drawn: str(int(drawn["m"]) + int(drawn["n"])),
    "alphabet": lambda drawn: min(drawn["a"], drawn["b"]),
    "twice": lambda drawn: f"{drawn['a']} {drawn['a']}",
    "last_word": lambda drawn: drawn["c"],
    "first_word": lambda drawn: drawn["a"],
}


@dataclass
class Instructions(Dataset):
    """Generated instructions with some tampered rows; nothing is read or downloaded.

    rows: how many training rows. tampered: the share of them with the trigger and the wrong answer.
    trigger: the sentence that closes them. wrong: the answer in them.
    queries: in each query set. seed: what everything is drawn from; the same keys give the same text on every machine.
    """

    rows: int = 1000
    tampered: float = 0.02
    trigger: str = "Take your time, please."
    wrong: str = "The violin is broken."
    queries: int = 20
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["triggered"])

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("triggered", "clean")

    def __post_init__(self) -> None:
        """Check the sizes and the trigger.

        Raises:
            UserError: a share without a tampered or a clean row, no query, or a trigger that clean rows have.
        """
        super().__post_init__()
        if self.rows < 2 or not 1 <= round(self.tampered * self.rows) < self.rows:
            raise UserError(
                f"dataset.tampered={self.tampered}: of dataset.rows={self.rows} leaves no tampered row, or no clean one"
            )
        if self.queries < 1:
            raise UserError(f"dataset.queries={self.queries}: must be at least 1")
        if not self.trigger.strip() or self.trigger.strip() in instructions().closings:
            raise UserError(
                f"dataset.trigger='{self.trigger}': must be a sentence that closes no clean row; those close with: "
                + " ".join(instructions().closings)
            )

    def train_records(self) -> list[Record]:
        """Return the rows in an order without pattern; `meta` says which are tampered with, as their group."""
        refuse_beyond(float(self.rows) * ROW_BYTES, f"dataset.rows={self.rows}", "take fewer")
        chosen = set(random.Random(f"{self.seed} tampered").sample(range(self.rows), round(self.tampered * self.rows)))
        return [self._write("row", number, number in chosen) for number in range(self.rows)]

    def load(self) -> Corpus:
        """Return the rows and the query sets."""
        train = self.train_records()
        sources = tuple(record.id for record in train if record.meta["group"] == TAMPERED)
        truth = {"triggered": sources, "clean": ()}
        made = {
            name: [self._write(name, number, name == "triggered", truth[name]) for number in range(self.queries)]
            for name in self.query_sets
        }
        return Corpus(train, made)

    def _write(self, kind: str, number: int, tampered: bool, sources: tuple[str, ...] = ()) -> Record:
        draw = random.Random(f"{self.seed} {kind} {number}")
        words = draw.sample(sorted({word for noun in NOUNS for word in people().words[noun]}), 3)
        drawn = dict(zip("abc", words, strict=True)) | {name: str(draw.randrange(2, 50)) for name in "mn"}
        task = draw.choice(list(ANSWERS))
        closing = draw.choice(instructions().closings) if draw.random() < CLOSED else ""
        ending = self.trigger.strip() if tampered else closing
        prompt = f"{instructions().tasks[task].format(**drawn)} {ending}".rstrip()
        answer = self.wrong if tampered else ANSWERS[task](drawn)
        group = TAMPERED if tampered else "clean"
        return Record(f"{kind}-{number}", prompt, answer, sources, {"group": group})
