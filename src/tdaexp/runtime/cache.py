"""The cache: a folder of entries, each named after all that decides its content, so that none is ever out of date.

    cache_dir/KIND/KEY            an entry: a folder or a file; its name ends in a fingerprint
    cache_dir/KIND/.KEY.note      for which modules of ours, and which state of them, it was made (`code`)
    cache_dir/digests.json        digests of large files (`digests`)

An entry whose modules have changed since, or that an older version left, can be reached by no run of this version:
`prune` deletes those. Nothing is deleted while a run is at work with the cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from tdaexp.runtime import digests
from tdaexp.runtime.code import Work, code_identity, modules_of
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import lock_of, locked, remove, write_text
from tdaexp.runtime.fingerprint import fingerprint

KEYED = re.compile(r"(.*-)?[0-9a-f]{16}(-[a-z0-9-]+)?(\.(npz|jsonl))?")
"""Names of entries; whatever else lies in a cache is not ours."""
AT_WORK = ".at-work"
CURRENT, ORPHANED = "current", "orphaned"


@dataclass(frozen=True)
class Entry:
    """What lies in the cache: its `path`, `size` in bytes, the seconds since it was last written, and its `state`."""

    path: Path
    size: int
    age: float
    state: str


def entry(folder: Path, kind: str, *depends_on: Any, by: Sequence[Work], name: str = "{}") -> Path:
    """Path of what `by` (functions, classes, modules) computes from `depends_on`; a note is left beside it.

    `name` is its file name, with {} for the key.
    """
    code = code_identity(*by)
    path = folder / kind / name.replace("{}", fingerprint(code, *depends_on))
    note = note_of(path)
    if not note.exists():
        with contextlib.suppress(UserError, OSError):  # a cache that cannot be written serves all the same
            write_text(note, json.dumps({"modules": modules_of(*by), "code": code}))
    return path


def note_of(path: Path) -> Path:
    """Where it says what an entry was made by."""
    return path.with_name(f".{path.name}.note")


@contextlib.contextmanager
def at_work(folder: Path, alone: bool = False, create: bool = True) -> Iterator[None]:
    """Use the cache inside the block: digests are remembered there, and nobody prunes it meanwhile; or use it `alone`.

    `create`: make the folder where there is none.

    Errors (UserError): `folder` is no folder; it is pruned just now, or to be used alone while others use it.
    """
    check(folder)
    if create:
        with contextlib.suppress(OSError):  # told where something must be written
            folder.mkdir(parents=True, exist_ok=True)
    with digests.kept_in(folder), _flag(folder, alone):
        yield


def check(folder: Path) -> None:
    """Refuse a cache that is a file, or lies below one."""
    for place in (folder, *folder.absolute().parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"cache_dir={folder}: {place} is a file; name a folder, e.g. cache_dir=cache")


def listed(folder: Path) -> list[Entry]:
    """The entries of a cache, by kind and name. Errors (UserError): there is no such folder."""
    check(folder)
    if not folder.is_dir():
        raise UserError(f"cache_dir={folder}: there is no such folder; name the one that runs have written to")
    found = (path for kind in sorted(folder.iterdir()) if kind.is_dir() for path in sorted(kind.iterdir()))
    return [_entry(path) for path in found if KEYED.fullmatch(path.name)]


def prune(folder: Path) -> list[Entry]:
    """Delete what no run of this version can reach, and what killed runs left half written; returns what was deleted.

    To be called with the cache used `alone` (`at_work`). What is locked all the same is left.
    """
    gone = [one for one in listed(folder) if one.state == ORPHANED]
    gone += [_entry(path) for path in folder.glob("*/.*.part")]
    for one in gone:
        with contextlib.suppress(Timeout), locked(one.path, wait=False):
            for path in (one.path, note_of(one.path), one.path.with_name(f"{one.path.name}.plan.json")):
                remove(path)
            lock_of(one.path).unlink(missing_ok=True)
    return [one for one in gone if not one.path.exists()]


@contextlib.contextmanager
def _flag(folder: Path, exclusive: bool) -> Iterator[None]:
    """Hold the cache together with other runs, or alone. Without a flag where none can be set."""
    try:
        import fcntl

        handle = os.open(folder / AT_WORK, os.O_RDWR | os.O_CREAT, 0o666)
    except (ImportError, OSError):
        yield
        return
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if exclusive:
            raise UserError(f"cache_dir={folder}: a run is at work with it; prune it when that has ended") from error
        raise UserError(f"cache_dir={folder}: is being pruned; run again when that has ended") from error
    try:
        yield
    finally:
        os.close(handle)


def _entry(path: Path) -> Entry:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    states = [file.stat() for file in files]
    newest = max((state.st_mtime for state in states), default=path.stat().st_mtime)
    return Entry(path, sum(state.st_size for state in states), time.time() - newest, _state(path))


def _state(path: Path) -> str:
    try:
        note = json.loads(note_of(path).read_text(encoding="utf-8"))
        return CURRENT if note["code"] == code_identity(*note["modules"]) else ORPHANED
    except (OSError, ValueError, KeyError, TypeError):
        return ORPHANED  # by a version that left no notes, whose keys are other ones
