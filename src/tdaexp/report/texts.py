"""The texts of queries and training examples, as a person reads them: prompt and completion apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tdaexp.data.examples import Examples
from tdaexp.data.pieces import DOCUMENT
from tdaexp.data.records import Record
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class Passage:
    """A text; `prompt` is empty where it has none, `rejected` is the answer that a question compares its own with."""

    prompt: str
    completion: str
    rejected: str = ""

    @property
    def whole(self) -> str:
        """All parts, one under the other."""
        return f"{self.prompt}\n{self.answer}" if self.prompt else self.answer

    @property
    def answer(self) -> str:
        """The completion as it is shown, with what it is compared with."""
        return f"{self.completion}\n(rather than: {self.rejected})" if self.rejected else self.completion


Texts = dict[str, dict[str, Passage]]  # by ROLES, id to text
ROLES = ("query", "train", "document")
"""What texts are of: queries, training examples, and records that are no example themselves but were cut into some."""


def texts_of(problem: Problem, records: Sequence[Record] = (), found: np.ndarray | None = None) -> Texts:
    """The texts of a problem's queries and training examples, and of those of the `records` that were cut into pieces.

    Where pairs were `found` (numbers of training examples), of the training examples those in one of them. Those of
    anybody's own lists may have no prompts.
    """
    known: Texts = {}
    train, places = problem.train, None if found is None else np.unique(found[found >= 0])
    if places is not None:
        train = train.select(places)
    for name, side in (("query", problem.queries), ("train", train)):
        prompts = getattr(side, "prompts", None) or [""] * len(side.ids)
        parts = zip(side.ids, prompts, side.texts, strict=True)
        known[name] = {one: _apart(prompt.lstrip(), text) for one, prompt, text in parts}
    for one in problem.queries if isinstance(problem.queries, Examples) else ():
        if one.rejected is not None:
            other = _apart(one.rejected.prompt.lstrip(), one.rejected.text).completion
            known["query"][one.id] = replace(known["query"][one.id], rejected=other)
    named = problem.belongs.get(DOCUMENT)
    if places is not None and named is not None:
        wanted = {named[place] for place in places}
        records = [record for record in records if record.id in wanted]
    cut = [record for record in records if record.id not in known["train"]] if named is not None else []
    return known | ({"document": {one.id: _apart(one.prompt.lstrip(), one.text) for one in cut}} if cut else {})


def texts_of_records(queries: Sequence[Record], train: Sequence[Record]) -> Texts:
    """The texts of records that no model has read."""
    found: Texts = {
        name: {one.id: _apart(one.prompt.lstrip(), one.text) for one in side}
        for name, side in (("query", queries), ("train", train))
    }
    for one in queries:
        if one.rejected is not None:
            other = _apart(one.rejected.prompt.lstrip(), one.rejected.text).completion
            found["query"][one.id] = replace(found["query"][one.id], rejected=other)
    return found


def as_one(texts: Texts, query_sets: list[str], ids: list[str], name: str) -> Texts:
    """The texts where the queries of each set became one, called `name`; `query_sets` and `ids` are what they were."""
    found: dict[str, Passage] = {}
    for group in dict.fromkeys(query_sets):
        mine = [one for one, of in zip(ids, query_sets, strict=True) if of == group]
        together = "\n\n".join(query_text(texts, group, one).whole for one in mine)
        found[f"{group}/{name}"] = Passage(f"The mean of {len(mine)} questions:", together)
    return {**texts, "query": found}


def _apart(prompt: str, text: str) -> Passage:
    """Cut a text that begins with its prompt (`data.records.Record.text`)."""
    if not prompt or not text.startswith(prompt):
        return Passage("", text)
    return Passage(prompt, text.removeprefix(prompt).removeprefix("\n"))


def as_json(texts: Texts) -> dict[str, dict[str, str | list[str]]]:
    """For a file: a text alone is a string, prompt and completion a list of two, with a rejected answer of three."""
    return {name: {key: _plain(one) for key, one in known.items()} for name, known in texts.items()}


def _plain(one: Passage) -> str | list[str]:
    parts = [one.prompt, one.completion, *([one.rejected] if one.rejected else [])]
    return parts if any((one.prompt, one.rejected)) else one.completion


def from_json(found: Mapping[str, Any], where: str) -> Texts:
    """What `as_json` gave; the files of earlier versions hold strings only. Errors (UserError): anything else."""
    texts: Texts = {"query": {}, "train": {}}
    for name, known in found.items():
        if name not in ROLES or not isinstance(known, dict):
            raise UserError(f"{where}: damaged; delete it, or run attribute.py again")
        texts[name] = {key: _passage(one, where) for key, one in known.items()}
    return texts


def _passage(value: Any, where: str) -> Passage:
    parts = ["", value] if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) not in (2, 3) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: damaged; delete it, or run attribute.py again")
    return Passage(*parts)


def query_text(texts: Texts | None, group: str, query: str) -> Passage:
    """A query's text, known by `<query set>/<id>` or by its id; its id where it has none."""
    known = texts["query"] if texts else {}
    return known.get(f"{group}/{query}") or known.get(query) or Passage("", query)


def train_text(texts: Texts | None, row: str) -> Passage:
    """A training example's text; its id where it has none."""
    return (texts["train"].get(row) if texts else None) or Passage("", row)
