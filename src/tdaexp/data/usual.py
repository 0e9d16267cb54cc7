"""Usual names of columns, by which a file's own are found where the configuration does not name them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tdaexp.data.columns import BY_NUMBER, Columns
from tdaexp.data.records import Skipped
from tdaexp.data.tables import Row
from tdaexp.runtime.errors import UserError, unknown

log = logging.getLogger(__name__)
DIALOGUES = ("messages", "conversations", "conversation", "dialogue", "dialog")
PROMPTS = ("prompt", "instruction", "question", "query", "input", "inputs")
BESIDE = {"instruction": ("input", "context")}
"""What an instruction is about, where that is in a column of its own."""
COMPLETIONS = ("completion", "response", "output", "answer", "chosen", "target", "targets")
TEXTS = ("text", "content", "document")
IDS = ("id", "_id", "uid", "uuid")
SOURCES = ("source",)
KEYS = "dataset.messages_column, text_column, or completion_column and prompt_column"


def columns_of(
    rows: Iterable[Row | Skipped],
    named: Columns,
    *,
    questions: bool = False,
    answered: bool = True,
    told: bool = True,
) -> Columns:
    """The columns of a file's rows: those that are `named`, the others by their usual names; what was found is logged
    where it is to be `told`.

    Columns named for the training rows hold for `questions` where these have them; `rejected` is theirs alone. Not
    `answered`: prompts alone will do, as answers come from elsewhere.

    Raises:
        UserError: a named column does not exist, or nothing has a usual name.
    """
    first, count = None, 0
    counts: Counter[str] = Counter()
    nested: set[str] = set()
    for row in rows:
        if isinstance(row, Row):
            first, count = first or row, count + 1
            counts.update(row.values.keys())
            nested.update(name for name, value in row.values.items() if isinstance(value, (list, dict)))
    if first is None:
        return named
    names = list(counts)
    for column in [named.rejected] if questions else named.used:
        if column is not None and column not in names:
            raise unknown("column", column, map(str, names), str(first.where))
    if questions:
        named = _there(named, names)
    usually = {name for name in names if 2 * counts[name] >= count}  # a row of another form changes none
    found = _completed(names, usually, named, questions)
    if named.source is None and found.source in nested:
        found = replace(found, source=None)  # it describes something, and names nothing
    if found.dialogue is found.text is found.completion is None and (answered or not found.prompt):
        raise _unusual(first, names, found, questions)
    if told and names != ["text"]:
        log.info("%s: %s", first.where.file, _told(found, names))
    return found


def _there(named: Columns, names: Sequence[str]) -> Columns:
    """Of named columns those that a file has, or none of those that make a record where one of them is missing."""
    form = [*named.prompt, *filter(None, (named.dialogue, named.text, named.completion))]
    fits = all(column in names for column in form)
    kept = named if fits else Columns(id=named.id, rejected=named.rejected)
    number = kept.id == BY_NUMBER or kept.id in names
    return replace(
        kept,
        id=kept.id if number else None,
        group=None,
        source=None,
    )


def _completed(names: Sequence[str], usually: set[str], named: Columns, questions: bool) -> Columns:
    known = {name.casefold(): name for name in reversed(names)}

    def usual(choices: Iterable[str], needed: bool = True) -> str | None:
        """The first of the choices that the file has, in most of its rows if it is `needed` in all."""
        found = (known[one] for one in choices if one in known)
        return next((name for name in found if name in usually or not needed), None)

    found = named
    if questions and found.rejected is None:
        found = replace(found, rejected=usual(("rejected",), needed=False))
    if found.id is None:
        found = replace(found, id=usual(IDS))
    if found.source is None and not questions:
        found = replace(found, source=usual(SOURCES, needed=False))
    if found.dialogue or found.text or found.completion:
        return found
    compared = found.rejected is not None and "chosen" in known
    if not named.prompt and not compared and (dialogue := usual(DIALOGUES)):
        return replace(found, dialogue=dialogue)
    prompt = named.prompt[0] if named.prompt else usual(PROMPTS)
    completion = usual(one for one in (("chosen",) if compared else COMPLETIONS) if known.get(one) != prompt)
    text = None if named.prompt else usual(TEXTS)
    if text is not None and not (prompt and completion):
        return replace(found, text=text)
    beside = usual(BESIDE.get(prompt.casefold(), ()), needed=False) if prompt and not named.prompt else None
    prompts = tuple(one for one in (prompt, beside if beside != completion else None) if one is not None)
    return replace(found, prompt=prompts, completion=completion)


def _told(columns: Columns, names: Sequence[str]) -> str:
    """What was found, for people."""
    parts = {
        "dialogues in": [columns.dialogue],
        "texts in": [columns.text],
        "prompts in": columns.prompt,
        "completions in": [columns.completion],
        "rejected answers in": [columns.rejected],
        "ids in": [None if columns.id == BY_NUMBER else columns.id],
        "groups in": [columns.group],
        "sources in": [columns.source],
        "not read:": [name for name in names if name not in columns.used],
    }
    quoted = {what: [f"'{one}'" for one in own if one is not None] for what, own in parts.items()}
    return ", ".join(f"{what} {' and '.join(own)}" for what, own in quoted.items() if own)


def _unusual(row: Row, names: Sequence[str], found: Columns, questions: bool) -> UserError:
    """The error of a file in which nothing makes a record."""
    file = row.where.file
    if found.prompt and questions:
        return UserError(
            f"{file}: has questions ('{found.prompt[0]}') and no answers; name the answers' column "
            "(dataset.completion_column=NAME), or let the model answer (dataset.query_sets=[generated])"
        )
    nested = [f"{name}.{key}" for name in names if isinstance(row.values.get(name), dict) for key in row.values[name]]
    flat = f"; of nested columns make columns of their own ({', '.join(nested[:8])})" if nested else ""
    return UserError(
        f"{file}: none of its columns ({', '.join(names[:20])}) has a usual name for what a record is made of{flat}; "
        f"say which holds what: {KEYS}"
    )
