"""Scores that another program wrote, on the pairs of one of our stores: the benchmark as everyone's referee.

Formats, by the file's suffix:

* `.json`: nested `{query: {train: score}}`. Where two query sets of the store share a query id, name the query
  `<query set>/<query>`.
* `.npy`, `.npz`, `.safetensors`, `.pt`: a matrix [query, train]. Rows follow the store's queries, columns its training
  ids in sorted order (as in `tdaexp.influence.dense`), unless the file names them: arrays `query` and `train` in an
  .npz, entries `query` and `train` (lists) in a .pt, or metadata of these names (JSON lists) in a .safetensors. The
  matrix is the entry `scores`, or the only one.

Positive must mean that training on the example made the query more likely.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.reading import as_name, as_number, parse_json, read_text, reason, repeated, spelt

SUFFIXES = (".json", ".npy", ".npz", ".safetensors", ".pt")
Table = dict[str, dict[str, float] | tuple[pd.Index, np.ndarray]]
"""Scores by query: as in the JSON file, or names [N] and values [N] of a matrix's row."""


def read_scores(path: Path, reference: xr.Dataset, label: str | None = None) -> xr.Dataset:
    """Read a score file as an influence data set on the candidates of `reference`, labelled by the file's name.

    A file that cannot be read, a pair of the reference without a (finite) score, a matrix of the wrong
    shape and an unknown suffix are `UserError`s that say which.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"scores={path}: unknown suffix '{path.suffix}'; choices: {', '.join(SUFFIXES)}")
    try:
        if not path.is_file():
            raise UserError(f"scores={path}: no such file")
        stored = _READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"scores={path}: not a readable {path.suffix} file ({reason(error)})") from error
    table = _nested(path, stored) if path.suffix == ".json" else _named(path, stored, reference)
    attrs = {
        "method": "external",
        "label": label or path.stem,
        "scores": path.name,
        "study": reference.attrs.get("study"),
    }
    known = {"truth_known": ("query", influence.truth_known(reference))}
    values = np.concatenate([_pick(path, table, part) for part in influence.blocks(reference)])
    return influence.like(reference, values, attrs).assign(known)


def _pick(path: Path, table: Table, reference: xr.Dataset) -> np.ndarray:
    """Look up every pair of a block of the reference [q, C]; NaN only where it has no candidate."""
    train = reference["train"].values
    values = np.full(train.shape, np.nan)
    for row, (group, query) in enumerate(zip(reference["query_set"].values, reference["query"].values, strict=True)):
        scores = table.get(f"{group}/{query}", table.get(query))
        if scores is None:
            raise UserError(f"scores={path}: query '{query}' of set '{group}' has no scores; every query needs some")
        names = pd.Index(scores) if isinstance(scores, dict) else scores[0]
        told = np.array(list(scores.values())) if isinstance(scores, dict) else scores[1]
        real = np.flatnonzero(train[row] != "")
        places = names.get_indexer(train[row, real])
        found = np.where(places < 0, np.nan, told[places]) if len(told) else np.full(len(places), np.nan)
        if not np.isfinite(found).all():
            bad = int(np.argmin(np.isfinite(found)))
            state = "no score" if places[bad] < 0 else f"the score {told[places[bad]]}, which is not finite"
            raise UserError(
                f"scores={path}: pair (query '{query}', train '{train[row, real[bad]]}') has {state}; every pair needs "
                "one"
            )
        values[row, real] = found
    return values


def _nested(path: Path, stored: Any) -> Table:
    shaped = isinstance(stored, dict) and all(isinstance(scores, dict) for scores in stored.values())
    if not shaped:
        raise UserError(f"scores={path}: must be nested as {{query: {{train: score}}}}")
    for query, scores in stored.items():
        for name, value in scores.items():
            scores[name] = value if isinstance(value, float) else as_number(value)  # NaN: see `_pick`
            if scores[name] is None:
                raise UserError(
                    f"scores={path}: pair (query '{query}', train '{name}') has the score {spelt(value)}; needed: a "
                    "finite number"
                )
    return dict(stored)


def _named(path: Path, stored: dict[str, Any], reference: xr.Dataset) -> Table:
    """Give a matrix the names of its rows and columns."""
    keys = [f"{g}/{q}" for g, q in zip(reference["query_set"].values, reference["query"].values, strict=True)]
    rows = _names(path, stored, "query") if "query" in stored else keys
    columns = _names(path, stored, "train") if "train" in stored else influence.train_ids(reference)
    names = [name for name in stored if name not in ("query", "train")]
    if "scores" not in names and len(names) != 1:
        raise UserError(f"scores={path}: has the entries {', '.join(sorted(names)) or 'none'}; name one 'scores'")
    matrix = _matrix(path, stored["scores" if "scores" in names else names[0]])
    if matrix.shape != (len(rows), len(columns)) or matrix.dtype.kind not in "iuf":
        raise UserError(
            f"scores={path}: the matrix has shape {matrix.shape} and type {matrix.dtype}, "
            f"needed: {len(rows)} queries × {len(columns)} training ids, real numbers"
        )
    names_of_columns = pd.Index(columns)
    return {row: (names_of_columns, values) for row, values in zip(rows, matrix, strict=True)}


def _names(path: Path, stored: dict[str, Any], entry: str) -> list[str]:
    """The names of rows or columns: a list, or an array of one dimension, of texts or whole numbers."""
    given = stored[entry]
    listed = given.tolist() if isinstance(given, np.ndarray) else list(given) if isinstance(given, tuple) else given
    if not isinstance(listed, list):
        raise UserError(f"scores={path}: the entry '{entry}' holds {spelt(listed)}; needed: a list of ids")
    names = [as_name(name, f"scores={path}: entry '{entry}', number {k}") for k, name in enumerate(listed, start=1)]
    twice = repeated(names)
    if twice is not None:
        raise UserError(f"scores={path}: the entry '{entry}' names '{twice}' twice; name each once")
    return names


def _matrix(path: Path, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"scores={path}: the scores are no matrix ({reason(error)})") from error


def _read_json(path: Path) -> Any:
    return parse_json(read_text(path, f"scores={path}"), f"scores={path}")


def _read_npy(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:  # numpy leaves a file open that it cannot read
        return {"scores": np.load(stream, allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        tensors = {name: _array(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata() or {}
    where = f"scores={path}: metadata"
    return tensors | {
        name: parse_json(metadata[name], f"{where} '{name}'") for name in ("query", "train") if name in metadata
    }


def _read_pt(path: Path) -> dict[str, Any]:
    import torch

    stored = torch.load(path, map_location="cpu", weights_only=True)
    entries = stored if isinstance(stored, dict) else {"scores": stored}
    if not all(isinstance(name, str) for name in entries):
        raise UserError(f"scores={path}: its entries must have names, 'scores' among them")
    return {name: _array(value) if isinstance(value, torch.Tensor) else value for name, value in entries.items()}


def _array(tensor: Any) -> np.ndarray:
    """Half-precision tensors become float32, which numpy has."""
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return np.asarray(tensor.float() if half else tensor)


_READERS = {
    ".json": _read_json,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_pt,
}
