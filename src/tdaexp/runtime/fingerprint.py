"""Fingerprints: short hashes of exactly what a result depends on, and where a result came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.runtime import digests
from tdaexp.runtime.errors import UserError

WATCHING = ("resume", "logger", "cache_dir", "plan", "trust")
"""Root keys of a configuration that change where and how a run is watched, not what it computes."""

PACKAGES = ("tdaexp", "torch", "transformers", "lightning", "numpy", "xarray", "zarr", "traker")


def fingerprint(*parts: Any) -> str:
    """Hash nested plain data (dicts, lists, dataclasses, numpy arrays, paths, numbers) to 16 hex digits.

    Dict order does not matter; list order does. Arrays count by dtype, shape and bytes.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([_plain(part) for part in parts], sort_keys=True).encode())
    return digest.hexdigest()


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides what a run computes."""
    return {key: value for key, value in config.items() if key not in WATCHING}


def file_fingerprint(path: Path) -> str:
    """Digest of a file's bytes, or of a folder's files with their relative names. Errors (UserError): nothing there."""
    if path.is_file():
        return digests.digest(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; was it moved or deleted meanwhile?")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint([[file.relative_to(path).as_posix(), digests.digest(file)] for file in files])


def provenance() -> dict[str, Any]:
    """Package versions and the git commit of this program (None outside a checkout)."""
    return {"versions": {name: version(name) for name in PACKAGES}, "git_commit": git_commit()}


def git_commit() -> str | None:
    """Return the commit of the checkout that this file belongs to, with `+` for uncommitted changes."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def version(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _plain({"class": type(value).__qualname__, **fields})
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        if data.dtype.kind in "USOT":
            return _plain(data.tolist())
        return [
            "array",
            str(data.dtype),
            list(data.shape),
            hashlib.blake2b(data.ravel().view(np.uint8).data).hexdigest(),
        ]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return value
