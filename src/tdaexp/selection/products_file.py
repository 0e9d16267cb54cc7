"""Stored gradient products of another program: an .npz file that stands in for model, data and gradients.

Arrays: `dot` [query, candidate, component], `query_sq` [query, component], `train_sq` [query, candidate, component],
`component` (names), `size` (parameters per component) and `query` (ids); and, where they are known, `target` [query]
(the column of the query's source, -1 where it is not known) and `query_set` [query] (or one name for all queries).
Candidate columns stand in BM25's order, best first, which is all that is known of BM25's scores.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.models.layers import canonical_name
from tdaexp.runtime.errors import UserError, nearest
from tdaexp.runtime.reading import as_name, reason

ARRAYS = ("dot", "query_sq", "train_sq", "component", "size", "query")
OPTIONAL = ("target", "query_set")
UNNAMED = "queries"  # the query set of a file that names none
AXES = {
    "dot": ("query", "candidate", "component"),
    "query_sq": ("query", "component"),
    "train_sq": ("query", "candidate", "component"),
    "target": ("query",),
    "size": ("component",),
}


def read_products(path: Path, query_set: str | None = None) -> xr.Dataset:
    """Read and check a products file as an influence data set; `query_set` names all its queries.

    Component names become canonical where the model's layout is known. Candidates have no ids in the file: a query's
    source takes the query's id, the others are named `<query>#<rank>`. `bm25` is minus the column's number. What is
    missing, misshapen, negative or not finite is a `UserError` that names the file and the array.
    """
    arrays = _read(path)
    _check_shapes(path, arrays)
    _check_values(path, arrays)
    queries = [str(name) for name in arrays["query"]]
    count = arrays["dot"].shape[1]
    target = arrays.get("target", np.full(len(queries), -1))
    truth = target[:, None] == np.arange(count)
    train = np.array([[f"{name}#{rank + 1}" for rank in range(count)] for name in queries], dtype=object)
    for row, column in np.argwhere(truth):
        train[row, column] = queries[row]
    return influence.build(
        arrays["dot"],
        query=queries,
        query_set=_query_sets(path, arrays, query_set),
        train=train,
        truth=truth,
        truth_known=target >= 0,
        bm25=np.tile(-np.arange(count, dtype=np.float64), (len(queries), 1)),
        component=_component_names(arrays["component"]),
        size=arrays["size"],
        query_sq=arrays["query_sq"],
        train_sq=arrays["train_sq"],
        attrs={
            "products": path.name,
            "bm25": "minus the column's number: the file's columns stand in BM25's order",
        },
    )


def _query_sets(path: Path, arrays: dict[str, np.ndarray], named: str | None) -> list[str]:
    """The set of each query: as it is called by the user, or by the file."""
    count = len(arrays["query"])
    if named is not None or "query_set" not in arrays:
        return [named or UNNAMED] * count
    told = arrays["query_set"]
    if told.shape not in ((), (count,)):
        raise UserError(f"{path}: array 'query_set' has shape {told.shape}, needed: one name, or one for each query")
    return [as_name(one, f"{path}: array 'query_set'") for one in np.broadcast_to(told, (count,)).tolist()]


def _component_names(stored: np.ndarray) -> list[str]:
    """Canonical names; where several parameters share one (all norms do), each keeps the name it has."""
    names = [str(name) for name in stored]
    canonical = [canonical_name(name) for name in names]
    return [new if canonical.count(new) == 1 else old for old, new in zip(names, canonical, strict=True)]


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        if not path.is_file():
            raise UserError(f"products={path}: no such file")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise what they like on a damaged file
        raise UserError(f"{path}: not a readable .npz file of plain arrays ({reason(error)})") from error
    extra = sorted(set(arrays) - {*ARRAYS, *OPTIONAL})
    misspelt = [name for name in OPTIONAL if name not in arrays and nearest(name, extra)]
    for name in (*ARRAYS, *misspelt):
        if name not in arrays:
            near = nearest(name, extra)
            hint = f" (is it '{near}'?)" if near else ""
            raise UserError(f"{path}: array '{name}' is missing{hint}; needed: {', '.join(ARRAYS)}")
    return arrays


def _check_shapes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    if arrays["dot"].ndim != 3 or not arrays["dot"].size:
        raise UserError(
            f"{path}: array 'dot' has shape {arrays['dot'].shape}, needed: [query, candidate, component], none empty"
        )
    queries, candidates, components = arrays["dot"].shape
    expected = {
        "query_sq": (queries, components),
        "train_sq": (queries, candidates, components),
        "target": (queries,),
        "component": (components,),
        "size": (components,),
        "query": (queries,),
    }
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape:
            raise UserError(
                f"{path}: array '{name}' has shape {arrays[name].shape}, "
                f"but 'dot' {arrays['dot'].shape} asks for {shape}"
            )


def _check_values(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name in (one for one in ("dot", "query_sq", "train_sq", "target", "size") if one in arrays):
        if arrays[name].dtype.kind not in "iuf":
            raise UserError(f"{path}: array '{name}' holds {arrays[name].dtype}, needed: real numbers")
        if not np.isfinite(arrays[name]).all():
            bad = ~np.isfinite(arrays[name])
            raise UserError(f"{path}: array '{name}' has a NaN or Inf at {_where(arrays, name, bad)}")
    for name in ("query_sq", "train_sq"):
        if (arrays[name] < 0).any():
            where = _where(arrays, name, arrays[name] < 0)
            raise UserError(f"{path}: array '{name}' has a negative self-product at {where}")
    if (arrays["size"] < 1).any():
        raise UserError(f"{path}: array 'size' has a component without parameters; every size must be at least 1")
    candidates = arrays["dot"].shape[1]
    targets = arrays.get("target", np.array([-1]))
    outside = ~np.isin(targets, np.arange(-1, candidates))
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"{path}: array 'target' names column {arrays['target'][row]} for query "
            f"'{arrays['query'][row]}', "
            f"but there are the candidates 0 to {candidates - 1} (-1: not known)"
        )
    for names in ("query", "component"):
        for text in arrays[names].tolist():
            as_name(text, f"{path}: array '{names}'")
        values, counts = np.unique(arrays[names], return_counts=True)
        if (counts > 1).any():
            raise UserError(f"{path}: array '{names}' repeats '{values[counts > 1][0]}'; names must be unique")


def _where(arrays: dict[str, np.ndarray], name: str, bad: np.ndarray) -> str:
    """Say where the first bad entry of the array stands: names of queries and components, numbers of candidates."""
    places = []
    for axis, index in zip(AXES[name], np.argwhere(bad)[0], strict=True):
        places.append(f"{axis} {index}" if axis == "candidate" else f"{axis} '{arrays[axis][index]}'")
    return ", ".join(places)
