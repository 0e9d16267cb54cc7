"""The one exception that a user is meant to see, and the wording of its hints."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: its message is one line that says what, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2. What files bring into a
    message (line ends, control characters, halves of surrogate pairs) is escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if message.isprintable() else "".join(map(_printable, message)))


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


MOST_COMPARED = 10_000  # choices, for a hint
LONGEST_NAME = 80  # characters, in a message


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is spelt most like `name`, or None when nothing comes near."""
    compared = [choice for choice in choices if len(choice) <= LONGEST_NAME]
    if len(name) > LONGEST_NAME or len(compared) > MOST_COMPARED:  # would take seconds
        return None
    matches = difflib.get_close_matches(name, compared, n=1, cutoff=0.5)
    return matches[0] if matches else None


def _counted(name: str) -> list[str | int]:
    """Sort key in which numbers count as such: layers.2 before layers.10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def unknown(what: str, name: str, choices: Iterable[str], where: str) -> UserError:
    """Build the error for a name that does not exist: what it is, where it stands, the nearest one, all of them.

    `what` is the kind of thing ("key", "method", "component"), `where` the file or option that holds it.
    """
    choices = sorted(choices, key=_counted)
    near = nearest(name, choices)
    hint = f"did you mean '{near}'? " if near else ""
    shown = ", ".join(map(_short, choices[:30])) + (", …" if len(choices) > 30 else "")
    return UserError(f"{where}: unknown {what} '{_short(name)}'; {hint}choices: {shown}")


def check_distinct(values: Iterable[object], where: str) -> None:
    """Refuse (UserError) a list of names in which one stands twice; `where` is its key."""
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise UserError(f"{where}: '{value}' stands twice; name each once")
        seen.append(value)
