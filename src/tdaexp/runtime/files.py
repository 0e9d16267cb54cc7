"""Files and folders that appear complete or not at all, and a cache of them keyed by fingerprint."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` when the block ends without an error.

    Works for files and for folders. A full disk leaves `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: two machines with one file system may give the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
    except Exception as error:
        if disk_full(error) and unwritten(error) is None:  # writing, unlike opening, does not say which file it was
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, two spaces of indent, non-ASCII kept."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an inter-process lock named after `path`, so that two jobs of a sweep do not build it twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def cached_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `path`, calling `build(temporary)` to fill it when it does not exist yet.

    The folder's name is expected to carry the fingerprint of all that its content depends on.
    """
    with locked(path):
        if not path.exists():
            for left in path.parent.glob(f".{path.name}.*.part"):  # by a run that was killed
                _remove(left)
            with atomic_path(path) as temporary:
                temporary.mkdir()
                build(temporary)
    return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unwritten(error: BaseException | None) -> str | None:
    """Which file or folder could not be written, where an error, or one that it came from, says so."""
    for one in _chain(error):
        if isinstance(one, OSError) and isinstance(one.filename, (str, os.PathLike)):
            return re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.part\b", r"\1", str(one.filename))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that nothing more can be written (device, quota or limit)."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in NO_SPACE:
            return True
        if "No space left on device" in str(one) or "StorageFull" in str(one):  # safetensors has no errno
            return True
    return False
