"""Which files a path names, one or several, and texts that are kept compressed."""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from tdaexp.data.columnar import FOLDER_OF_TABLES, INSTALL, TABLES, is_saved
from tdaexp.data.lines import READERS
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.reading import reason

COMPRESSED = (".gz", ".zst")
KINDS = (*READERS, *TABLES)
LARGE_BYTES = 1 << 20
"""Of files together, from which on reading and tokenising them again takes longer than the rest of a small run."""


def kind_of(path: Path) -> str:
    """What rows are kept as, by a file's name: `.jsonl`, `.parquet`, … of compressed files the kind of their text."""
    inner = Path(path.stem).suffix
    return inner if path.suffix in COMPRESSED and inner in READERS else path.suffix


def files_of(path: Path) -> list[Path]:
    """The files of rows that a path names: itself, those in a folder, or those that fit a pattern (`a/*.parquet`).

    They are in order of their names. A folder that `datasets` saved is one. Whether a file is there is not looked at.

    Raises:
        UserError: a folder or a pattern without such files, or with files of several kinds; a file of another kind.
    """
    if path.is_dir() and not is_saved(path):
        found = sorted(one for one in path.iterdir() if one.is_file() and kind_of(one) in KINDS)
        if not found:
            raise UserError(f"{path}: is a folder; name a file in it ({', '.join(KINDS)}), or {FOLDER_OF_TABLES}")
    elif not path.exists() and glob.has_magic(str(path)):
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not found:
            raise UserError(
                f"{path}: no file fits this pattern; relative paths start at the folder the command runs in"
            )
    else:
        found = [path]
    for one in found:
        if not one.is_dir() and kind_of(one) not in KINDS:
            kinds = (*KINDS, *(f".jsonl{ending}" for ending in COMPRESSED))
            raise unknown("kind of file", one.suffix or one.name, kinds, str(one))
    if len(several := sorted({kind_of(one) for one in found})) > 1:
        raise UserError(
            f"{path}: holds files of several kinds ({', '.join(several)}); name those of one, e.g. "
            f"'{path if path.is_dir() else path.parent}/*{several[0]}'"
        )
    return found


def large(files: Sequence[Path]) -> bool:
    """Whether all these files are there and have so many bytes that what they hold is better not kept in memory."""
    return (
        bool(files) and all(one.is_file() for one in files) and sum(one.stat().st_size for one in files) >= LARGE_BYTES
    )


def all_files(path: Path) -> list[Path]:
    """The files that hold the bytes of what a path names: of a folder that `datasets` saved, all that are in it."""
    return [one for found in files_of(path) for one in (sorted(found.rglob("*")) if found.is_dir() else [found])
            if not one.is_dir()]  # fmt: skip


@contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """A file's text, unpacked as it is read; bytes that are no UTF-8 become halves of surrogate pairs.

    Raises:
        UserError: a compressed file is damaged, or what unpacks it is not installed.
    """
    try:
        with _raw(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as stream:
            yield stream
    except (EOFError, zlib.error, OSError) as error:
        if path.suffix not in COMPRESSED or isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise UserError(
            f"{path}: is no {path.suffix[1:]} file, or damaged ({reason(error)}); write it again"
        ) from error


def _raw(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix != ".zst":
        return path.open("rb")
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(f"{path}: needs the package 'pyarrow'; {INSTALL}") from error
    return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))
