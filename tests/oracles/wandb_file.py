"""What wandb was really told: its offline files, read without its reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as wire


def records(file: Path) -> list[wire.Record]:
    """Read a .wandb file: LevelDB's log format after a header of 7 bytes, one protobuf message per record."""
    data, position, parts, found = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            found.append(wire.Record.FromString(parts))
            parts = b""
    return found


def of_kind(found: Iterable[wire.Record], kind: str) -> list[Any]:
    """The records of a kind."""
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def items_of(items: Any) -> dict[str, Any]:
    """Values by key, of a record that has items."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def told(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]:
    """Of the one run in a folder: its id, its configuration, its summary, and what kind of media each name is."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = records(file)
    (run,) = of_kind(found, "run")
    summary: dict[str, Any] = {}
    for one in of_kind(found, "summary"):
        summary |= items_of(one.update)
    history: dict[str, Any] = {}
    for one in of_kind(found, "history"):
        history |= items_of(one.item)
    media = {key.removesuffix("/_type"): value for key, value in history.items() if key.endswith("/_type")}
    return run.run_id, items_of(run.config.update), summary, media
