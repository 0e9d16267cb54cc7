"""Names that become a part of a path: one word of it, never a way out of the folder that it is joined to."""

from __future__ import annotations

import os

from tdaexp.runtime.errors import UserError

LONGEST = 100  # bytes: with a fingerprint and a suffix it stays below the 255 of a file system
FORBIDDEN = frozenset('/\\:*?"<>|')


def check_name(key: str, name: str) -> str:
    """Return `name`, the value of `key`, where it can be a part of a file name on any system.

    Raises:
        UserError: it is empty or long, begins with a dot, a blank or a dash, or holds what separates names.
    """
    bad = next((letter for letter in name if letter in FORBIDDEN or not letter.isprintable()), None)
    if bad is not None:
        reason = f"holds {bad!r}"
    elif name != name.strip() or name[:1] in ("", ".", "-", "~") or name.endswith("."):
        reason = "is empty, or begins or ends with a blank, a dot, a dash or a tilde"
    elif len(name.encode(errors="replace")) > LONGEST:
        reason = f"is longer than {LONGEST} bytes"
    else:
        return name
    shown = name if len(name) <= LONGEST else f"{name[:40]}…"
    raise UserError(f"{key}={shown!r}: names a file or a folder and {reason}; take letters, digits, '-', '_' and '.'")


def as_file_name(path: str) -> str:
    """The last word of a folder or hub id as a name that `check_name` takes; what it refuses becomes a dash."""
    folder = os.path.expanduser(path)
    word = os.path.basename(os.path.realpath(folder) if os.path.isdir(folder) else path.rstrip("/"))
    plain = "".join(letter if letter.isprintable() and letter not in FORBIDDEN else "-" for letter in word)
    cut = plain.encode(errors="replace")[:LONGEST].decode(errors="ignore").strip(" .-~")
    return cut or "model"
