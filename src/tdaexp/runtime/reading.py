"""The boundary that files of other programs and people pass: bytes become text, JSON and numbers, or one line of error.

`where` is the place in messages: a file, or "FILE, row N".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tdaexp.runtime.errors import UserError

LONGEST_TEXT = 1_000_000
"""Characters of one text at most: no model reads as many, and tokenizers take minutes over them."""


def read_text(path: Path, where: str | None = None) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    where = where or str(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({undecodable(path)}); convert it first") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({reason(error)}); check the name and its permissions") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Errors (UserError): it cannot be read, is damaged, or holds something else."""
    try:
        found = yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is damaged as YAML ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no keys and values")
    return found


def undecodable(path: Path) -> str:
    """Where a file stops being UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1} of it"
    return "at its end"


def parse_json(text: str, where: str, unique: bool = True) -> Any:
    """Parse JSON; NaN and Infinity, which are none, become floats that `as_text` and `as_number` refuse.

    Raises:
        UserError: not JSON, nested too deeply, or (with `unique`) an object that names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object if unique else None)
    except RecursionError as error:
        raise UserError(f"{where}: not usable JSON (nested too deeply); mend or remove it") from error
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({reason(error)}); mend or remove it") from error


def as_text(value: Any, where: str) -> str:
    """A value that must be text that people could have written, blank or not.

    Raises:
        UserError: another type (numbers, booleans and NaN are no text), a NUL byte, half a surrogate pair, or more
            than `LONGEST_TEXT` characters.
    """
    if not isinstance(value, str):
        raise UserError(f"{where} holds {spelt(value)}, which is no text; write it as text (in quotes)")
    if len(value) > LONGEST_TEXT:
        raise UserError(
            f"{where} holds {len(value):,} characters, and one text may have {LONGEST_TEXT:,}; cut it into several rows"
        )
    if "\0" in value:
        raise UserError(f"{where} holds a NUL byte (character {value.index(chr(0)) + 1}); remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half a surrogate pair ({value[error.start]!a}, character {error.start + 1}), which is no "
            "character; mend the text"
        ) from error
    return value


def as_name(value: Any, where: str) -> str:
    """An id or another name: text, or a whole number, which has one spelling.

    Raises:
        UserError: anything else, or nothing but blanks.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError as error:  # Python writes no more than 4,300 digits
            raise UserError(f"{where} holds a number of too many digits; write it as text") from error
    if not isinstance(value, str):
        raise UserError(f"{where} holds {spelt(value)}, which names nothing; write a text or a whole number")
    if not as_text(value, where).strip():
        raise UserError(f"{where} is empty; fill it in or remove the row")
    return value


def as_number(value: Any) -> float | None:
    """A finite real number as a float; None for anything else: booleans, texts, NaN, and what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def spelt(value: Any) -> str:
    """A value of a file in a message: how it stands there, if it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    try:
        text = str(value)
    except ValueError:
        return "a number of too many digits"
    shown = text if len(text) <= 40 else text[:40] + "…"
    if isinstance(value, (int, float)):
        return f"the number {shown}"
    return f"'{shown}'" if isinstance(value, str) else f"{type(value).__name__} {shown}"


def reason(error: BaseException) -> str:
    """Why something could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = " ".join(str(error).split()) or type(error).__name__
    return told.split("; use sys.")[0][:200]


def repeated(names: Iterable[str]) -> str | None:
    """The first name that stands twice; None where all are distinct."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object names '{repeated(key for key, _ in pairs)}' twice")
    return found
