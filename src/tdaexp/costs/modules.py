"""Costs of scoring a classifier's pairs: gradient products, curvature factors, preconditioned queries.

Each function counts what the code in `gradients.products`, `curvature.phases` and `curvature.score` does. All
queries have the same candidates. Peaks of memory include the weights.
"""

from __future__ import annotations

from math import ceil

from torch import Tensor, nn

from tdaexp.costs.stages import EIGH_COPIES, EIGH_FLOP, FACTOR_CACHE
from tdaexp.costs.task_workload import TILED, TaskWorkload
from tdaexp.costs.workload import KEPT, RUNTIME_BYTES, STORE
from tdaexp.curvature import covariance, lambdas
from tdaexp.curvature.layers import Layers
from tdaexp.models.components import ComponentMap
from tdaexp.runtime.costs import StageCost


def module_products_cost(work: TaskWorkload, components: ComponentMap) -> StageCost:
    """Products of whole gradients, of the queries that fit the cache with all candidates at a time."""
    entries = float(components.sizes.sum())
    held, blocks, passes = _blocks(work, 4.0 * entries)
    batch = min(work.most_together, max(work.candidates, work.queries))
    table = work.table_bytes(len(components))
    return StageCost(
        "gradient products",
        forward=passes,
        backward=passes,
        flop=3.0 * passes * work.forward[0] + 2.0 * entries * (work.queries * work.candidates + passes),
        disk=STORE + (KEPT + TILED) * table,
        device=4.0 * work.size + 4.0 * held * entries + batch * (4.0 * (work.size + 2 * entries) + work.recorded_bytes),
        host=4 * table * held / work.queries + 3 * table + work.inputs + RUNTIME_BYTES,
        note=f"{blocks} blocks of queries; a block holds at most {4e-9 * held * entries:.3g} GB (trainer.cache_gb)",
    )


def module_factor_costs(work: TaskWorkload, layers: Layers, mode: str, partitions: int, saves: int) -> list[StageCost]:
    """The phases of a fit over the training set, each layer at its own number of positions."""
    if mode == "identity":
        return []
    places, parts = _positions(work), min(partitions, len(layers))
    sides = [width for layer in layers.layers for width in (layer.outputs, layer.inputs)]
    squares, entries = float(sum(width**2 for width in sides)), float(sum(layer.size for layer in layers.layers))
    batches = ceil(work.train / work.most_together)
    passes, saves = float(parts * work.train), min(saves, batches)
    flop, labels, rotated = 3.0 * passes * work.forward[0], 8.0 * work.train, mode == "ekfac"
    memory = 4.0 * work.size + min(work.most_together, work.train) * work.recorded_bytes
    host = work.inputs + RUNTIME_BYTES
    squared = sum(
        lambdas.multiply_adds(places[one.name], one.outputs, one.inputs - one.bias, one.bias, rotated)
        for one in layers.layers
    )
    last = StageCost(
        "Λ" if rotated else "diagonal", passes, passes, flop + 2.0 * work.train * squared,
        saves * 4.0 * entries + STORE, memory + 4.0 * entries / parts,
        (min(FACTOR_CACHE, 8.0 * squares) if rotated else 0.0) + host,
    )  # fmt: skip
    if mode == "diagonal":
        return [last]
    moments = sum(
        covariance.multiply_adds(places[one.name], width)
        for one in layers.layers
        for width in (one.outputs, one.inputs)
    )
    fit = StageCost(
        "covariances", passes, passes, flop + 2.0 * work.train * moments, saves * 4.0 * squares + labels + STORE,
        memory + 8.0 * squares / parts, host, f"{len(layers)} matrices, {saves} partial sums (method.saves)",
    )  # fmt: skip
    basis = StageCost(
        "eigenbases", flop=EIGH_FLOP * float(sum(width**3 for width in sides)),
        disk=4.0 * squares + 8.0 * sum(sides) + STORE, device=4.0 * work.size,
        host=EIGH_COPIES * 8.0 * max(sides) ** 2 + host,
    )  # fmt: skip
    return [fit, basis, last] if rotated else [fit, basis]


def module_scores_cost(work: TaskWorkload, layers: Layers, factors: str) -> StageCost:
    """Preconditioned queries against their candidates."""
    entries, places = float(sum(layer.size for layer in layers.layers)), _positions(work)
    held, blocks, passes = _blocks(work, 4.0 * entries)
    inverse = sum(4.0 * one.size * (one.outputs + one.inputs) for one in layers.layers) * (factors != "identity")
    formed = 2.0 * sum(places[one.name] * one.size for one in layers.layers)
    table = work.table_bytes(len(layers.components))
    return StageCost(
        "influence",
        forward=passes,
        backward=passes,
        flop=passes * (3.0 * work.forward[0] + formed) + work.queries * (inverse + 2.0 * work.candidates * entries),
        disk=KEPT * table + STORE,
        device=4.0 * (work.size + held * entries) + min(work.most_together, work.candidates) * work.recorded_bytes,
        host=4 * table + work.inputs + RUNTIME_BYTES,
        note=f"{blocks} blocks of queries; a query holds {4e-9 * entries:.3g} GB (trainer.cache_gb)",
    )


def _blocks(work: TaskWorkload, query: float) -> tuple[int, int, float]:
    """Queries of `query` bytes that are held together, blocks of them, and passes over examples."""
    held = min(work.queries, max(1, int(work.cache_gb * 1e9 // query)))
    blocks = ceil(work.queries / held)
    return held, blocks, float(work.queries + blocks * work.candidates)


def _positions(work: TaskWorkload) -> dict[str, int]:
    """Positions of every layer: places of a convolution's output, else what stands before the features."""
    found: dict[str, int] = {}

    def note(path: str, layer: nn.Module, output: Tensor) -> None:
        features = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
        found[path] = output.numel() // features

    handles = [
        layer.register_forward_hook(lambda one, _, output, path=path: note(path, one, output))
        for path, layer in work.module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    try:
        work.module(work.example)
    finally:
        for handle in handles:
            handle.remove()
    return found
