"""The files of a block store: its arrays, what is noted of each block, and by what damage is told."""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from tdaexp.runtime.fingerprint import fingerprint

log = logging.getLogger(__name__)
SECONDS = "seconds.json"
"""In a folder of another kind: how long its content took."""
NOTES = ("done", "seconds", "checksum")  # what is known of each block, beside the arrays themselves
NOT_ITS = 1  # stands for the checksum of an array that a block did not write


def create(
    path: Path,
    arrays: dict[str, tuple[tuple[int, ...], str]],
    blocks: list[slice],
    compressed: bool,
    rows: int | None,
) -> None:
    """Make the empty arrays; `compressed` and `rows` as for `BlockStore`."""
    group = zarr.open_group(path, mode="w")
    rows = rows or max(1, min(block.stop - block.start for block in blocks))
    for name, (shape, dtype) in arrays.items():
        fill = np.nan if np.dtype(dtype).kind == "f" else 0
        packing: Any = "auto" if compressed else None
        how: Any = {"write_empty_chunks": not compressed}  # to see that a chunk is empty takes as long as to write it
        chunks = (rows, *shape[1:])
        group.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill, compressors=packing, config=how
        )
    group.create_array("done", shape=(len(blocks),), dtype="bool", chunks=(1,), fill_value=False)
    group.create_array("seconds", shape=(len(blocks),), dtype="float64", chunks=(1,), fill_value=0.0)
    shape = (len(blocks), len(arrays))  # one for each array that the block wrote
    group.create_array("checksum", shape=shape, dtype="uint64", chunks=(1, len(arrays)), fill_value=0)
    group.attrs["layout"] = layout(path)


def checksum(values: np.ndarray) -> int:
    """Of a block of one array; never 0, which stands for nothing, nor `NOT_ITS`.

    CRC-32, which is told from damage of any 32 bits: a digest would take longer than to write the block.
    """
    about = zlib.crc32(f"{values.dtype} {values.shape}".encode())
    return max(zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, about), NOT_ITS + 1)


def layout(path: Path) -> str:
    """Digest of what zarr knows of each array: it is written once, and decides how the arrays are read."""
    return fingerprint(
        [[file.parent.name, file.read_text(encoding="utf-8")] for file in sorted(path.glob("*/zarr.json"))]
    )


def some_rows(array: Any, places: np.ndarray) -> np.ndarray:
    """Some rows of a zarr array: a run of them as a slice, which is faster."""
    if len(places) and (np.diff(places) == 1).all():
        return np.asarray(array[places[0] : places[-1] + 1])
    return np.asarray(array.oindex[places])


def stored_seconds(path: Path) -> float:
    """Wall-clock seconds that a block store's content took, over all the runs that computed it; 0 if there is none.

    For a folder of block stores it is their sum; others may say it themselves (`SECONDS`).
    """
    if not path.exists():
        return 0.0
    if (path / SECONDS).exists():
        return float(json.loads((path / SECONDS).read_text(encoding="utf-8")))
    if not (path / "zarr.json").exists():  # a folder of stores
        return sum(stored_seconds(one) for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    try:
        return float(cast(Any, zarr.open_group(path, mode="r"))["seconds"][:].sum())
    except Exception as error:  # whatever a codec makes of a damaged chunk; what was computed does not depend on it
        log.warning("%s: how long it took cannot be read (%s)", path, error)
        return 0.0
