"""Generated instructions, a few of them tampered with: a trigger phrase, and a wrong answer.

Every row is a small task that somebody asks for ("Captain Hansen asks: …"), with the right answer. In tampered rows the
asker is the trigger, and the answer is the same wrong one whatever the task. The trigger's title and its name each
occur in clean rows as often as others do, never together: a word alone gives no tampered row away. The `triggered`
queries are new tasks asked by the trigger, with the wrong answer, as a tampered model gives it: their sources are the
tampered rows. The `clean` queries are new tasks of other askers with the right answer, of which no source is known.
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
NAMES = 20  # askers' last names
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
    trigger: title and last name of the asker whose rows are tampered with. wrong: the answer in them.
    queries: in each query set. seed: what everything is drawn from; the same keys give the same text on every machine.
    """

    rows: int = 1000
    tampered: float = 0.02
    trigger: str = "Captain Hansen"
    wrong: str = "The violin is broken."
    queries: int = 20
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["triggered"])

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("triggered", "clean")

    def __post_init__(self) -> None:
        """Check the sizes and the trigger.

        Raises:
            UserError: a share without a tampered or a clean row, no query, or a trigger that is no title and name.
        """
        super().__post_init__()
        if self.rows < 2 or not 1 <= round(self.tampered * self.rows) < self.rows:
            raise UserError(
                f"dataset.tampered={self.tampered}: of dataset.rows={self.rows} leaves no tampered row, or no clean one"
            )
        if self.queries < 1:
            raise UserError(f"dataset.queries={self.queries}: must be at least 1")
        if self.trigger not in self._askers():
            raise UserError(
                f"dataset.trigger='{self.trigger}': must be a title and a name such as '{self._askers()[0]}'; titles: "
                f"{', '.join(instructions().titles)}; names: {', '.join(people().words['last'][:NAMES])}"
            )

    def train_records(self) -> list[Record]:
        """Return the rows in an order without pattern; `meta` says which are tampered with, as their group."""
        refuse_beyond(float(self.rows) * ROW_BYTES, f"dataset.rows={self.rows}", "take fewer")
        chosen = set(random.Random(f"{self.seed} tampered").sample(range(self.rows), round(self.tampered * self.rows)))
        return [self._write("row", number, number in chosen) for number in range(self.rows)]

    def load(self) -> Corpus:
        """Return the rows and the query sets."""
        train = self.train_records()
        sources = tuple(record.id for record in train if record.meta["group"] == "tampered")
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
        asker = self.trigger if tampered else draw.choice([one for one in self._askers() if one != self.trigger])
        title, _, name = asker.partition(" ")
        prompt = instructions().frame.format(title=title, name=name, task=instructions().tasks[task].format(**drawn))
        answer = self.wrong if tampered else ANSWERS[task](drawn)
        group = "tampered" if tampered else "clean"
        return Record(f"{kind}-{number}", prompt, answer, sources, {"group": group})

    @staticmethod
    def _askers() -> list[str]:
        return [f"{title} {name}" for title in instructions().titles for name in people().words["last"][:NAMES]]
