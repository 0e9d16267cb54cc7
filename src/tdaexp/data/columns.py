"""What the columns of one file hold, and the record that a row becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdaexp.data.dialogues import Told, is_dialogue, told, turns_of
from tdaexp.data.records import Record, Turn
from tdaexp.data.tables import Row
from tdaexp.data.templates import ASSISTANT
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.reading import as_name

BY_NUMBER = "row"
"""In place of an id column: the row's number."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file. A record is a `dialogue`, a `text`, or the `completion` of a prompt.

    The texts of several `prompt` columns stand one under the other; those behind the first may be empty. `completion`
    and `rejected` hold a text, the assistant's messages, or a whole dialogue. `source` and `group` are what a record
    belongs to.
    """

    dialogue: str | None = None
    text: str | None = None
    prompt: tuple[str, ...] = ()
    completion: str | None = None
    rejected: str | None = None
    id: str | None = None
    group: str | None = None
    source: str | None = None

    @property
    def used(self) -> list[str]:
        """The columns that are read."""
        single = (self.dialogue, self.text, self.completion, self.rejected, self.id, self.group, self.source)
        return [*self.prompt, *(one for one in single if one is not None and one != BY_NUMBER)]

    def name(self, row: Row, number: int) -> str:
        """A row's id: that of its column, or its number."""
        return str(number) if self.id in (None, BY_NUMBER) else row.name(str(self.id))

    def record(self, row: Row, number: int, fraction: float = 0.0) -> Record:
        """The record of a row and its number from 0; `fraction` of a text's words are the prompt.

        Raises:
            UserError: a column is missing or empty, or holds something else.
        """
        name, meta = self.name(row, number), {}
        if self.group is not None:
            meta["group"] = row.name(self.group)
        if (source := self._source(row)) is not None:
            meta["source"] = source
        if self.text is not None:
            return Record(name, *split_words(row.text(self.text), fraction), meta=meta, where=row.where)
        prompt, completion, said = self._told(row)
        rejected = None
        if self.rejected in row.values and not row.blank(str(self.rejected)):
            other = self._answered(row, str(self.rejected))
            if other == (prompt, completion, said):
                raise UserError(f"{row.where}: its rejected answer is the chosen one, so there is nothing to compare")
            rejected = Record(name, other[0], other[1], where=row.where, said=other[2])
        return Record(name, prompt, completion, meta=meta, where=row.where, said=said, rejected=rejected)

    def _source(self, row: Row) -> str | None:
        """Where a row comes from: a text or a whole number, which a table may keep as 2020.0; None for none."""
        if self.source not in row.values or row.blank(str(self.source)):
            return None
        value = row.value(str(self.source))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return as_name(value, f"{row.where}: column '{self.source}'")

    def asked(self, row: Row) -> str:
        """The text of the prompt, empty where the file has none, or of what is all text."""
        if self.text is not None:
            return row.text(self.text)
        first = [row.text(column) for column in self.prompt[:1] if row.value(column) not in (None, "")]
        more = [row.text(column) for column in self.prompt[1:] if column in row.values and not row.blank(column)]
        return "\n".join(first + more)

    def _told(self, row: Row) -> Told:
        if self.completion is not None:
            return self._answered(row, self.completion)
        if self.dialogue is not None:
            where = f"{row.where}: column '{self.dialogue}'"
            return told(turns_of(row.value(self.dialogue), where), where)
        return self.asked(row), "", ()  # a prompt that the model completes

    def _answered(self, row: Row, column: str) -> Told:
        """With the answer of a column: behind the prompt or the dialogue, unless it is a whole dialogue itself."""
        value, where = row.value(column), f"{row.where}: column '{column}'"
        plain = not is_dialogue(value)
        if plain and self.dialogue is None and not self._prompt_is_dialogue(row):
            return self.asked(row), row.text(column), ()
        turns = [(ASSISTANT, row.text(column))] if plain else turns_of(value, where)
        if all(role == ASSISTANT for role, _ in turns):
            turns = [*self._before(row), *turns]
        return told(turns, where)

    def _prompt_is_dialogue(self, row: Row) -> bool:
        return bool(self.prompt) and is_dialogue(row.values.get(self.prompt[0]))

    def _before(self, row: Row) -> list[Turn]:
        """What was said before an answer."""
        column = self.dialogue or (self.prompt[0] if self._prompt_is_dialogue(row) else None)
        if column is None:
            prompt = self.asked(row)
            return [("user", prompt)] if prompt else []
        turns = turns_of(row.value(column), f"{row.where}: column '{column}'")
        while turns and turns[-1][0] == ASSISTANT:
            turns.pop()
        return turns


def split_words(text: str, fraction: float) -> tuple[str, str]:
    """Cut a text after the first `fraction` of its words, rounded down: at least one word is completion."""
    if not fraction:
        return "", text.lstrip()
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    cut = starts[int(fraction * len(starts))]
    return text[:cut].rstrip(), text[cut:]
