"""`python evaluate.py cache=list|prune|verify`: what the cache holds, what no run can reach, and what is damaged."""

from __future__ import annotations

import logging
from pathlib import Path

from tdaexp.runtime import digests, seal
from tdaexp.runtime.cache import ORPHANED, Entry, listed, prune
from tdaexp.runtime.progress import track

log = logging.getLogger(__name__)


def look_after(folder: Path, what: str) -> dict[str, float]:
    """List the entries of a cache, delete those that are orphaned, or read those that have checksums, and say so.

    Returns numbers and bytes.
    """
    if what == "verify":
        return _verify(folder)
    if what == "prune":
        gone = prune(folder)
        _tell(folder, gone)
        log.info("%s: %d entries deleted, %s freed", folder, len(gone), _size(gone))
        return {"cache/deleted": float(len(gone)), "cache/freed": float(sum(one.size for one in gone))}
    found = listed(folder)
    orphaned = [one for one in found if one.state == ORPHANED]
    _tell(folder, found)
    log.info(
        "%s: %d entries, %s; %d of them orphaned, %s, which cache=prune deletes",
        folder, len(found), _size(found), len(orphaned), _size(orphaned),
    )  # fmt: skip
    return {"cache/entries": float(len(found)), "cache/bytes": float(sum(one.size for one in found))}


def _verify(folder: Path) -> dict[str, float]:
    """Read each folder that was sealed (models, candidates, blocks of an index), whatever is remembered of it."""
    sealed = [one.path for one in listed(folder) if (one.path / seal.SEAL).exists()]
    damaged = 0
    with digests.anew():
        for path in track(sealed, "reading the cache", len(sealed), stoppable=True):
            broken = seal.damage(path)
            if broken is not None:
                damaged += 1
                log.warning("%s: damaged (%s); delete it, whoever needs it makes it again", path, broken)
    log.info("%s: %d entries with checksums were read, %d of them are damaged", folder, len(sealed), damaged)
    return {"cache/verified": float(len(sealed)), "cache/damaged": float(damaged)}


def _tell(folder: Path, entries: list[Entry]) -> None:
    for one in entries:
        log.info("%s  %s, %s, %s", one.path.relative_to(folder), _size([one]), _age(one.age), one.state)


def _size(entries: list[Entry]) -> str:
    return f"{sum(one.size for one in entries) / 1e6:.3g} MB"


def _age(seconds: float) -> str:
    """In words that fit the length."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} old"
    return f"{max(seconds, 0):.0f} s old"
