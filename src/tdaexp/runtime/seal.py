"""Checksums beside what this program writes: a folder that was damaged is refused, never read as another answer.

A sealed folder holds `checksums.json`: the digest of each of its files, by relative path, and its own. Files that were
added later are nobody's business here; those that are listed must read as they were written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import write_json
from tdaexp.runtime.fingerprint import file_fingerprint, fingerprint

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Write down the digests of all files of a folder that is finished."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SEAL)
    digests = {file.relative_to(folder).as_posix(): file_fingerprint(file) for file in files}
    write_note(folder / SEAL, digests)


def damage(folder: Path, among: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with a sealed folder, in words ("weights.safetensors: its checksum is wrong"); None if nothing is.

    `among` chooses by relative path the files that are looked at.
    """
    try:
        digests = read_note(folder / SEAL)
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError) as error:
        return f"{SEAL}: not readable ({type(error).__name__})"
    for name, digest in digests.items():
        if among(name):
            if not (folder / name).is_file():
                return f"{name}: is missing"
            try:
                if file_fingerprint(folder / name) != digest:
                    return f"{name}: its checksum is wrong"
            except (OSError, ValueError) as error:
                return f"{name}: not readable ({type(error).__name__})"
    return None


def require(folder: Path, remedy: str = "run again", among: Callable[[str], bool] = lambda name: True) -> None:
    """Raise UserError where a sealed folder is damaged; it says which file, and what to delete."""
    found = damage(folder, among)
    if found:
        raise UserError(f"{folder}: {found}, the folder was changed after it was written; delete {folder} and {remedy}")


def write_note(path: Path, value: Any) -> None:
    """Write plain data as JSON, with its checksum."""
    write_json(path, {"value": value, "checksum": fingerprint(value)})


def read_note(path: Path) -> Any:
    """What `write_note` wrote. Errors (ValueError, OSError): it reads otherwise, or not at all."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("checksum") != fingerprint(found.get("value")):
        raise ValueError("its checksum is wrong")
    return found["value"]
