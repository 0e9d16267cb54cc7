"""The influence store of a path decomposition: named axes, and how much room it takes before it is made."""

from __future__ import annotations

import logging
import shutil
from math import ceil, prod
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.pathkernel.decompose import looked_at
from tdaexp.paths.blocks import STEPS_PER_BLOCK
from tdaexp.paths.decomposition import PathJob, kept_outputs
from tdaexp.paths.entry_error import entry_error, share
from tdaexp.paths.forward import forward_shapes, parts_of
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
AXES = ("query", "train", "part", "component", "step", "output")
NAMES = {"kernel": "influence", "regularisation": "regularisation", "first_moment": "first_moment"}
Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
SUMS = 4  # arrays [query, output] of every store: start, change, explained, residual


def sizes(job: PathJob, width: tuple[int, int]) -> tuple[int, int]:
    """Bytes of the store, and of what lies in the cache while it is made; `width` is (queries, outputs)."""
    numbers = 4 if "step" in job.keep else 3
    complete = 8 * (SUMS * prod(width) + numbers * len(job.counted))
    blocks = ceil(len(job.counted) / STEPS_PER_BLOCK)  # each has its own sums over steps
    sums = 8 * 2 * blocks * prod(width)
    if "train" not in job.keep:
        values = 8 * sum(map(prod, forward_shapes(job, parts_of(job), width).values()))
        if "step" in job.keep:
            values *= len(job.counted)
            return complete + values, complete + sums + values
        return complete + values, complete + sums + blocks * values
    rows, columns = (n if axis in job.keep else 1 for n, axis in zip(width, ("query", "output"), strict=True))
    examples = len(job.problem.train) if job.single is None else job.single
    checked = len(looked_at(width[0]))
    values = 8 * len(job.layout.components) * rows * columns * (examples + 2)
    errors = 8 * len(job.layout.components) * checked * columns * examples
    groups = job.groups(width[1])
    carry = (rows + checked) * columns * job.layout.size * torch.finfo(job.problem.compute.dtype).bits // 8
    return complete + values, complete + sums + values + errors + carry + (values + carry) // len(groups)


def tell_size(job: PathJob, width: tuple[int, int], cache: Path) -> None:
    """Say how large the store will be. Errors (UserError): it does not fit on the disk beside its intermediate sums."""
    counts = dict(zip(("query", "output"), width, strict=True))
    counts |= {"component": len(job.layout.components), "step": len(job.counted)}
    counts |= {"train": len(job.problem.train) if job.single is None else job.single, "part": len(job.partition or ())}
    shape = " × ".join(f"{counts[axis]} {axis}" for axis in AXES if axis in job.keep) or "sums alone"
    store, work = sizes(job, width)
    log.info("explaind: %s; the store takes %.3g GB, and %.3g GB of cache to make", shape, store / 1e9, work / 1e9)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if store + work > free:
        raise UserError(
            f"method.keep={sorted(job.keep)}: the decomposition takes {(store + work) / 1e9:.3g} GB and {cache} has "
            f"{free / 1e9:.3g} GB free; keep fewer axes, set dataset.query_limit, or name another cache_dir"
        )


def of_updates(job: PathJob, found: dict[str, np.ndarray]) -> Variables:
    """Variables from `forward_run`: parts [S?, P, K, Q?, O?]."""
    result: Variables = {}
    lead = ("step",) if "step" in job.keep else ()
    for part, name in NAMES.items():
        if part not in found:
            continue
        split = part == "kernel" and "part" in job.keep
        inner = [("part", split), ("component", "component" in job.keep)]
        axes = (*lead, *(axis for axis, kept in inner if kept))
        summed = tuple(len(lead) + place for place, (_, kept) in enumerate(inner) if not kept)
        tail = tuple(axis for axis in ("query", "output") if axis in job.keep)
        result[name] = ((*axes, *tail), found[part].squeeze(summed))
        if lead:
            label = "importance" if part == "kernel" else f"importance_{part}"
            result[label] = (axes, found[f"importance_{part}"].squeeze(summed))
    if "replay" in found:
        result["replay_error"] = (("query", "output"), found["replay"])
    return result | _completeness(found)


def of_examples(job: PathJob, found: dict[str, np.ndarray]) -> Variables:
    """Variables from `sweep_run`: [K, N, Q, O] with ones for axes that are summed."""
    gap = found["whole"] - found["kernel"].sum(1) - found["regularisation"]
    parts = {"influence": found["kernel"], "regularisation": found["regularisation"]}
    if job.trajectory.settings.every > 1:
        parts["first_moment"] = gap
    elif job.single is not None:
        parts["rest"] = gap
    result = {}
    for name, values in parts.items():
        axes = ("component", "train") if name == "influence" else ("component",)
        dims = tuple(axis for axis in (*axes, "query", "output") if axis in job.keep)
        kept = kept_outputs(torch.from_numpy(values), job.keep).numpy()
        result[name] = (dims, kept if "component" in job.keep else kept.squeeze(0))
    if job.trajectory.settings.every == 1 and job.single is None:
        dims = tuple(axis for axis in ("query", "output") if axis in job.keep)
        result["replay_error"] = (dims, kept_outputs(torch.from_numpy(gap.sum(0)), job.keep).numpy())
    return result | _completeness(found)


def _completeness(found: dict[str, np.ndarray]) -> Variables:
    pair: Variables = {name: (("query", "output"), found[name]) for name in ("change", "residual")}
    pair["explained"] = (("query", "output"), found["change"] - found["residual"])
    if np.ndim(found["error_norm"]) == 1:
        shares = [share(*norms) for norms in zip(found["error_norm"], found["entry_norm"], strict=True)]
        pair["entry_error"] = (("step",), np.array(shares))
    return pair | {name: (("step",), found[name]) for name in ("residual_norm", "change_norm", "nodes")}


def labelled(job: PathJob, start: np.ndarray, found: dict[str, np.ndarray], output: str) -> xr.Dataset:
    """The store of what was `found`, with names of steps, components, parts, queries and examples; `start` [Q, O]."""
    data = of_examples(job, found) if "train" in job.keep else of_updates(job, found)
    problem, keep = job.problem, job.keep
    coords: dict[str, object] = {
        "query": np.array(problem.queries.ids, dtype=object),
        "query_set": ("query", np.array(problem.query_set, dtype=object)),
        "step": np.array(job.counted, dtype=np.int64),
        "output": np.arange(start.shape[1]),
    }
    if "component" in keep:
        lengths = [place.stop - place.start for place in job.layout.slices]
        coords |= {"component": np.array(problem.map.names, dtype=object), "size": ("component", lengths)}
    if "train" in keep:
        coords["train"] = np.array(problem.train.ids[: job.single], dtype=object)
    if job.partition is not None:
        coords["part"] = np.array(job.partition.labels, dtype=object)
    dataset = xr.Dataset({**data, "start": (("query", "output"), start)}, coords)
    order = [axis for axis in AXES if axis in dataset.dims]
    return dataset.transpose(*order).assign_attrs(
        format_version=influence.FORMAT_VERSION, normalise="none", output=output, keep=sorted(keep),
        rule=job.quadrature.rule, entry_error=entry_error(found),
    )  # fmt: skip
