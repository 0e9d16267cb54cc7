"""ExPLAIND on a list of checkpoints: one simulated update at each, its loss change decomposed.

Source: Eichin et al. 2026, section 6 and remark F.3. From a checkpoint's parameters and its optimiser's state, a batch
drawn for it makes one update of AdamW; the change of the mean loss per token of held-out examples is decomposed into
`influence` (the batch's own share), `regularisation` and `first_moment`, the stored average's, which no example can be
charged with. Skipped steps are not made up for by rescaling, as in the paper's own experiment. Sign: contributions to
the negative loss, so that a positive value means that the held-out text became more likely. Additive over parts,
components and groups. Each checkpoint is a block on disk, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.data.groups import ALL
from tdaexp.models.hub import load_skeleton
from tdaexp.models.source import locate
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.paths.checkpoint_problem import CheckpointStudy, slabs_of
from tdaexp.paths.checkpoint_step import NUMBERS, Plan, decompose
from tdaexp.runtime.blockstore import BlockStore

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
NAMES = {"kernel": "influence", "regularisation": "regularisation", "first_moment": "first_moment"}


def decompose_checkpoints(study: CheckpointStudy, keep: frozenset[str], quadrature: Quadrature) -> xr.Dataset:
    """Decompose the held-out loss's change in one simulated update at each checkpoint.

    `keep` may hold component, query and train, the last two by group; step is always kept. The store has `influence`
    [query, train, component, step], `regularisation` and `first_moment` (no train) over the axes that were kept,
    `importance…` [component, step], their absolute values summed over groups; `start`, `change`, `explained` and
    `residual` [query, step]; `nodes`, `lr`, `gradient_norm`, `batch_loss`, `residual_norm`, `change_norm` [step]; and
    the coordinate `stored` [step], whether the optimiser's state was the checkpoint's own.
    """
    plan = _plan(study, keep, quadrature)
    count = len(study.snapshots)
    fresh = sum(one.state is None for one in study.snapshots)
    if fresh:
        log.warning(
            "%d of %d checkpoints hold no state of the optimiser: assumed is an AdamW that begins anew there (both "
            "averages zero), with the learning rate and weight decay of trainer.fit", fresh, count,
        )  # fmt: skip
    folder = study.store("checkpoints", list(plan.queries), plan.groups, asdict(quadrature), by=decompose_checkpoints)
    store = BlockStore(folder, plan.arrays(count), [slice(k, k + 1) for k in range(count)])
    with store.pending() as missing:
        for block in store.each(missing, "decomposition, checkpoints"):
            found = decompose(plan, study.snapshots[block])
            store.write(block, {name: value[None] for name, value in found.items()})
    return _label(plan, keep, store.read())


def _plan(study: CheckpointStudy, keep: frozenset[str], quadrature: Quadrature) -> Plan:
    names = sorted(set(study.query_groups)) if "query" in keep else [ALL]
    queries = {name: [place for place, own in enumerate(study.query_groups) if name in (ALL, own)] for name in names}
    model = study.snapshots[0].model
    source = locate(model.pretrained, model.revision, "model.checkpoints")
    sizes, slabs = slabs_of(load_skeleton(source, model.trust_remote_code))
    groups = sorted(set(study.pool_groups)) if "train" in keep else []
    return Plan(study, quadrature, queries, groups, sizes, slabs)


def _label(plan: Plan, keep: frozenset[str], arrays: Arrays) -> xr.Dataset:
    data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for part, name in NAMES.items():
        train = part == "kernel" and plan.groups
        dims = ("step", "component", "train", "query") if train else ("step", "component", "query")
        summed = tuple(place for place, axis in enumerate(dims) if axis not in (*keep, "step"))
        data[name] = (tuple(axis for axis in dims if axis in (*keep, "step")), arrays[part].sum(axis=summed))
        size = np.abs(arrays[part].sum(axis=2) if train else arrays[part]).sum(axis=-1)
        if "component" in keep:
            data["importance" if part == "kernel" else f"importance_{part}"] = (("step", "component"), size)
    change = arrays["after"] - arrays["before"]
    pair = {"start": arrays["before"], "change": change, "residual": arrays["residual"]}
    pair["explained"] = change - arrays["residual"]
    data |= {name: (("step", "query"), values) for name, values in pair.items()}
    data |= {name: (("step",), arrays[name]) for name in NUMBERS}
    # of the whole held-out loss: its groups' parts sum to it
    data |= {f"{name}_norm": (("step",), np.abs(pair[name].sum(axis=1))) for name in ("change", "residual")}
    snapshots = plan.study.snapshots
    coords: dict[str, object] = {
        "step": np.array([one.step for one in snapshots], dtype=np.int64),
        "stored": ("step", np.array([one.state is not None for one in snapshots])),
        "query": np.array(list(plan.queries), dtype=object),
        "query_set": ("query", np.array(["held out"] * len(plan.queries), dtype=object)),
    }
    if "component" in keep:
        coords |= {"component": np.array(list(plan.sizes), dtype=object)}
        coords |= {"size": ("component", np.array(list(plan.sizes.values()), dtype=np.int64))}
    if plan.groups:
        coords["train"] = np.array(plan.groups, dtype=object)
    dataset = xr.Dataset(data, coords)  # type: ignore[arg-type]
    order = [axis for axis in ("query", "train", "component", "step") if axis in dataset.dims]
    return dataset.transpose(*order).assign_attrs(
        format_version=influence.FORMAT_VERSION, normalise="none", output="loss", keep=sorted(keep | {"step"}),
        updates="simulated",
    )  # fmt: skip
