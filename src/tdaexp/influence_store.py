"""The influence tensor on disk: a zarr store that is written and read by blocks of queries.

It holds the variables and coordinates of the data set (`influence`) as they are, but for the coordinate `train` [Q, C]:
training ids stand once, in `train_id` [N] in order of appearance, and `train` has their numbers, -1 for no candidate.
Files hold a block of queries each. Attributes are JSON, under the key `tdaexp`; `checksums.json` has the digest of each
file (`runtime.seal`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.runtime import seal
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.rows import Rows, lazy, runs

FORMAT_VERSION = 3
ATTRIBUTES = ".zattrs"
TRAIN_ID = "train_id"
NOBODY = -1


def save(dataset: xr.Dataset, path: str | Path) -> None:
    """Write the data set as a zarr store, with a checksum of each of its files; it appears complete or not at all.

    Pairs are read, computed where that is to be done, and written by blocks of queries.
    """
    path, plain = Path(path), dataset.copy()
    plain.attrs = {"tdaexp": json.dumps(dataset.attrs)}
    with atomic_path(path) as temporary:
        if "candidate" in dataset.dims:
            _write_pairs(plain, temporary)
        else:
            plain.to_zarr(temporary, zarr_format=2, consolidated=True)
        seal.seal(temporary)


def _write_pairs(dataset: xr.Dataset, path: Path) -> None:
    """Write the first block of queries, append the others; training examples go by their number in a list of ids."""
    numbers = {"": NOBODY}
    by_query = [name for name, variable in dataset.variables.items() if "query" in variable.dims]
    row_bytes = sum(dataset[name].nbytes for name in by_query) / max(dataset.sizes["query"], 1)
    for run in runs(dataset.sizes["query"], row_bytes):
        part = dataset.isel(query=run)
        codes, names = pd.factorize(part["train"].values.ravel())
        known = np.array([numbers.setdefault(name, len(numbers) - 1) for name in names], dtype=np.int32)
        part = part.assign_coords(train=(part["train"].dims, known[codes].reshape(part["train"].shape)))
        if run.start:
            part = part.drop_vars([name for name in dataset.variables if name not in by_query])
            part.to_zarr(path, append_dim="query", consolidated=True)
        else:
            kept = {name: {"chunks": tuple(max(n, 1) for n in part[name].shape)} for name in by_query}
            part.to_zarr(path, encoding=kept, zarr_format=2, consolidated=True)
    ids = np.array([name for name in numbers if name], dtype=object)
    xr.Dataset({TRAIN_ID: ("number", ids)}, attrs=dataset.attrs).to_zarr(path, mode="a", consolidated=True)


def load(path: str | Path) -> xr.Dataset:
    """Open a store; a missing, foreign, damaged or older one is a `UserError`.

    Its checksums are looked at once, here; what has a value for each pair is read when values are asked for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such influence store; run attribute.py first or name another folder")
    try:
        written = _written(path).get("format_version")
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable influence store ({said}); delete it and run again") from error
    broken = seal.damage(path)
    if written != FORMAT_VERSION and (broken is None or not (path / seal.SEAL).exists()):
        raise UserError(
            f"{path}: written in format {written}, this version reads {FORMAT_VERSION}; "
            "delete the store and run attribute.py again"
        )
    if broken:  # zarr reads a chunk that was lost as NaN, without a word
        raise UserError(f"{path}: not a readable influence store ({broken}); delete it and run again")
    try:
        seen = _state(path)
        dataset = _plain(_guarded(xr.open_zarr(path, chunks=None, consolidated=True), path, seen))
    except Exception as error:
        raise UserError(f"{path}: not a readable influence store ({error}); delete it and run again") from error
    return dataset


def intact(path: Path) -> bool:
    """Whether a store is there, of this version, and each of its files reads as it was written."""
    try:
        return _written(path).get("format_version") == FORMAT_VERSION and seal.damage(path) is None
    except Exception:  # whatever a file that was cut off, or another program's, makes of it
        return False


def attributes(path: Path) -> dict[str, Any]:
    """Read a store's attributes alone; empty where there are none that can be read."""
    try:
        return {} if seal.damage(path, lambda name: name == ATTRIBUTES) else _written(path)
    except Exception:  # `load` says what is wrong with it
        return {}


def _written(path: Path) -> dict[str, Any]:
    return dict(json.loads(json.loads((path / ATTRIBUTES).read_text(encoding="utf-8"))["tdaexp"]))


def _state(path: Path) -> tuple[int, int]:
    """What tells a store from another that takes its place."""
    found = (path / seal.SEAL).stat()
    return found.st_ino, found.st_mtime_ns


def _guarded(stored: xr.Dataset, path: Path, seen: tuple[int, int]) -> xr.Dataset:
    """The pairs' variables, whose later reads are refused (UserError) once another run has written the store anew."""

    def reader(variable: xr.Variable) -> Rows:
        def read(rows: np.ndarray) -> np.ndarray:
            try:
                values = np.asarray(variable.isel(query=rows).values)
                same = _state(path) == seen
            except OSError:
                same = False
            if not same:
                raise UserError(f"{path}: was written anew or deleted while it was read; run again")
            return values

        return Rows(variable.shape, variable.dtype, read)

    pairs = {name: one for name, one in stored.variables.items() if one.dims[:2] == ("query", "candidate")}
    return stored.assign({name: (one.dims, lazy(reader(one))) for name, one in pairs.items()})


def _plain(stored: xr.Dataset) -> xr.Dataset:
    """As it was saved: names as object arrays of str (zarr has numpy's StringDType, which few libraries know)."""
    strings = [name for name in stored.variables if stored[name].dtype.kind == "T"]
    dataset = stored.assign_coords({name: (stored[name].dims, stored[name].values.astype(object)) for name in strings})
    dataset.attrs = json.loads(stored.attrs["tdaexp"])
    if TRAIN_ID not in dataset:
        return dataset
    numbers, ids = stored["train"].variable, np.array([*dataset[TRAIN_ID].values, ""], dtype=object)
    names = Rows(numbers.shape, object, lambda rows: ids[numbers.isel(query=rows).values])
    return dataset.drop_vars(TRAIN_ID).assign_coords(train=(numbers.dims, lazy(names)))
