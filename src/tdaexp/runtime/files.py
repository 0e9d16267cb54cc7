"""Files and folders that appear complete or not at all, and a cache of them keyed by fingerprint.

Where nothing can be written, nobody can write meanwhile: what is there is read without a lock. Whatever must be written
there is refused in one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
SELF_INFLUENCE = "self_influence.zarr"
CHECKPOINTS = "checkpoints.json"
"""What a training leaves in its run folder: a list of the folders that hold its weights."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError where the block cannot write to `path` or beside it; the error of a full disk learns `path`."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(path.parent)
        above = error.filename is not None and path.is_relative_to(os.fsdecode(error.filename))
        if error.errno in (*NOT_WRITABLE, *NO_FOLDER) and (ours or above):
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); mend that, or name a folder that can (cache_dir=FOLDER "
                "for what is kept between runs, hydra.run.dir=FOLDER for a run's results)"
            ) from error
        if error.errno in NO_SPACE:
            vars(error).setdefault("place", path)
        raise
    except Exception as error:  # what safetensors and zarr make of a full disk
        if disk_full(error):
            vars(error).setdefault("place", path)
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` when the block ends without an error.

    Works for files and for folders. A full disk leaves `path` as it was.
    """
    # Not the process's number: two machines with one file system may give the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if path.is_dir():
                remove(path)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, two spaces of indent, non-ASCII kept."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an inter-process lock named after `path`, so that two jobs of a sweep do not build it twice.

    Without a lock where nothing can be written. Errors: `filelock.Timeout` where another holds it and `wait` is not.
    """
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock_of(path), timeout=-1 if wait else 0))
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                with writing(path):
                    raise
        yield


def lock_of(path: Path) -> Path:
    """The file by which `path` is locked."""
    return path.with_name(f".{path.name}.lock")


def cached_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `path`, calling `build(temporary)` to fill it when it does not exist yet.

    The folder's name is expected to carry the fingerprint of all that its content depends on. It is sealed
    (`runtime.seal`): whoever reads it can tell that it was damaged.
    """
    from tdaexp.runtime.seal import seal

    if path.exists():  # complete, since it appears at once
        return path
    with locked(path):
        if not path.exists():
            for left in path.parent.glob(f".{path.name}.*.part"):  # by a run that was killed
                remove(left)
            with atomic_path(path) as temporary:
                temporary.mkdir()
                build(temporary)
                seal(temporary)
    return path


def mended_folder(path: Path, build: Callable[[Path], None]) -> Path:
    """As `cached_folder`; one that does not read as it was written is named, and built again."""
    from tdaexp.runtime import seal

    broken = seal.damage(path) if path.exists() else None
    if broken is not None:
        log.warning("%s: damaged (%s), and is made again", path, broken)
        with locked(path), writing(path):
            if path.exists() and seal.damage(path) is not None:  # nobody has made it meanwhile
                remove(path)
    return cached_folder(path, build)


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def full_place(error: BaseException | None) -> Path | None:
    """What was being written when an error came up, where that is known."""
    for one in _chain(error):
        place = vars(one).get("place") or (one.filename if isinstance(one, OSError) else None)
        if isinstance(place, (str, os.PathLike)):
            return Path(re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.part\b", r"\1", os.fspath(place)))
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
