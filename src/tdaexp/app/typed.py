"""Options as people type them: a file name with any character needs no quotes of Hydra's grammar."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

OPTION = re.compile(r"(?P<key>\+{0,2}[A-Za-z_][\w.@/:-]*)=(?P<value>.*)", re.DOTALL)
OPENERS = ("[", "{", "'", '"')


def quoted(text: str) -> str:
    """The text as a quoted string of Hydra's grammar."""
    inner = re.sub(r'(\\*)"', lambda found: found[1] * 2 + r"\"", text)
    trailing = len(inner) - len(inner.rstrip("\\"))
    return f'"{inner}{inner[len(inner) - trailing :]}"'


def for_shell(key: str, value: str) -> str:
    """What to type in a shell for a text that Hydra's grammar would read otherwise."""
    return shlex.quote(f"{key}={quoted(value)}")


def as_option(text: str, multirun: bool) -> str:
    """Return `key=value` with the value quoted where Hydra's grammar has no place for it as it was typed.

    That is so where it does not parse (`my data (1).jsonl`, `données.jsonl`, `~/x`, `a=b.jsonl`), and where it is the
    name of a file that would be taken for a list of values or a number. In a sweep each value is looked at for itself.
    """
    found = OPTION.fullmatch(text)
    if found is None:
        return text
    key, value = found["key"], found["value"]
    parsed, named = parse(text), _is_file(value)
    if parsed is not None and not (named and _misread(parsed, value, multirun)):
        return text
    if not named and (value.startswith(OPENERS) or "${" in value):
        return text
    if multirun and "," in value and not named:
        parts = [part if parse(f"{key}={part}") else quoted(part) for part in value.split(",")]
        option = f"{key}={','.join(parts)}"
    else:
        option = f"{key}={quoted(value)}"
    return option if parse(option) is not None else text


def parse(text: str) -> Override | None:
    """The override that a text is; None where it is none."""
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException:
        return None


def _misread(parsed: Override, value: str, multirun: bool) -> bool:
    if parsed.is_sweep_override():
        return not multirun
    read = parsed.value()
    return isinstance(read, (int, float, str)) and not isinstance(read, bool) and str(read) != value


def _is_file(value: str) -> bool:
    try:
        return bool(value) and Path(value).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False
