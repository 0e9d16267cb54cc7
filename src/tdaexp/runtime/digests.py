"""Digests of files: large ones are read once, and known again by path, size, inode and times.

What is known is kept in memory and, once `keep_in` names a folder, in a file there. A file that changed within the last
seconds is not remembered: its times might not tell that it changes once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tdaexp.runtime.errors import UserError

NAME = "digests.json"
LARGE = 1 << 20
"""Bytes from which on reading a file again costs more than asking for its state."""
SETTLED_S = 2.0
"""Seconds since its last change after which a file's times can be trusted to tell the next one."""

_known: dict[str, list[Any]] = {}
_place: Path | None = None
_anew = False  # whether files are read, whatever is known of them
_news = False  # whether something is known that the file does not say


def keep_in(folder: Path | None) -> None:
    """Remember digests in a folder's file `digests.json` from here on; take up what is known there."""
    global _place
    _place = None if folder is None else folder / NAME
    if _place is not None:
        _known.update(_read(_place))


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """As `keep_in`, inside the block."""
    global _place
    before = _place
    keep_in(folder)
    try:
        yield
    finally:
        write()
        _place = before


@contextlib.contextmanager
def anew() -> Iterator[None]:
    """Inside the block every file is read, also one that is known: bytes may change without a trace in the times."""
    global _anew
    _anew = True
    try:
        yield
    finally:
        _anew = False


def digest(path: Path) -> str:
    """The digest (16 hex digits) of a file's bytes."""
    if path.stat().st_size < LARGE:
        return _of_bytes(path)
    found = str(remembered(path, "bytes", _of_bytes))
    write()
    return found


def remembered(path: Path, what: str, compute: Callable[[Path], Any]) -> Any:
    """`compute(path)`, plain data that follows from the file's bytes; not computed again while the file is the same.

    `what` tells apart what is computed of a file. `write` keeps it for other runs.
    """
    global _news
    key = f"{what} {os.path.realpath(path)}"
    state = _state(path)
    found = _known.get(key)
    if found is not None and found[0] == state and not _anew:
        return found[1]
    value = compute(path)
    if time.time() - max(state[2], state[3]) / 1e9 > SETTLED_S and _state(path) == state:
        _known[key], _news = [state, value], True
    return value


def write() -> None:
    """Keep what is known now; a folder that cannot be written is left as it is."""
    global _news
    if _place is None or not _news:
        return
    from tdaexp.runtime.files import write_text

    known = {key: value for key, value in {**_read(_place), **_known}.items() if os.path.exists(key.partition(" ")[2])}
    with contextlib.suppress(OSError, UserError):
        write_text(_place, json.dumps({"known": known, "checksum": _checksum(known)}))
    _news = False


def _of_bytes(path: Path) -> str:
    found = hashlib.blake2b(digest_size=8)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read(place: Path) -> dict[str, list[Any]]:
    """What a file knows; nothing where it is missing or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return dict(found["known"]) if found["checksum"] == _checksum(found["known"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checksum(known: Any) -> str:
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()
