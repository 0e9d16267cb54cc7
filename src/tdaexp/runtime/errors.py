"""The one exception that a user is meant to see, and the wording of its hints."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable

from tdaexp.runtime.secrets import masked


class UserError(Exception):
    """A mistake that the user can mend: its message is one line that says what, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2. Whatever a library's
    exception, a file or a typed value brought into it, it is one printable line, without secrets.
    """

    def __str__(self) -> str:
        """The message as people may see it."""
        return masked(printable(" ".join(super().__str__().split())))


def printable(text: str) -> str:
    """The text with what does not print (control characters, lone surrogates) written as escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_control(letter: str) -> bool:
    """Whether a letter is a control character or half of a surrogate pair."""
    return unicodedata.category(letter) in ("Cc", "Cs")


MOST_COMPARED = 10_000  # choices, for a hint
LONGEST_NAME = 80  # characters, in a message


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is spelt most like `name`, or None when nothing comes near."""
    known = {choice.lower(): choice for choice in choices if len(choice) <= LONGEST_NAME}
    if len(name) > LONGEST_NAME or len(known) > MOST_COMPARED:  # would take seconds
        return None
    matches = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return known[matches[0]] if matches else None


def _counted(name: str) -> list[str | int]:
    """Sort key in which numbers count as such: layers.2 before layers.10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def unknown(what: str, name: str, choices: Iterable[str], where: str, hint: str | None = None) -> UserError:
    """Build the error for a name that does not exist: what it is, where it stands, the nearest one, all of them.

    `what` is the kind of thing ("key", "method", "component"), `where` the file or option that holds it;
    `hint` says what is meant where that is known better than by spelling.
    """
    choices = sorted(choices, key=_counted)
    near = nearest(name, choices)
    hint = f"{hint}; " if hint else f"did you mean '{near}'? " if near else ""
    shown = ", ".join(map(_short, choices[:30])) + (", …" if len(choices) > 30 else "")
    rest = f"choices: {shown}" if choices else f"there is no {what} to choose here"
    return UserError(f"{where}: unknown {what} '{_short(name)}'; {hint}{rest}")


def check_distinct(values: Iterable[object], where: Callable[[], str]) -> None:
    """Refuse (UserError) a list of names in which one stands twice; `where` says its key."""
    seen: list[object] = []
    for value in values:
        if value in seen:
            raise UserError(f"{where()}: '{value}' stands twice; name each once")
        seen.append(value)
