"""Costs of random projections: the sketches of all examples, and the products that are taken of them.

Each function counts what the code of the same name in `gradients` does. Peaks of memory include the weights.
"""

from __future__ import annotations

import numpy as np

from tdaexp.costs.stages import products_disk
from tdaexp.costs.workload import RUNTIME_BYTES, STORE, Workload
from tdaexp.data.sizes import Sizes
from tdaexp.gradients.feature_products import BESIDE, feature_memory
from tdaexp.gradients.features import CHUNK_BYTES
from tdaexp.gradients.schedule import plan_blocks
from tdaexp.gradients.sketch_factorised import factor_dimensions
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.costs import StageCost

SIGN_BYTES = {"srht": 0.25, "sjlt": 8.0, "trak": 0.0}
"""For each parameter, what a sketch keeps between calls; traker's draws its matrix again each time."""


def features_cost(
    work: Workload, passed: Sizes, components: ComponentMap, dims: dict[str, int], kind: str
) -> list[StageCost]:
    """Sketches of `passed` examples (`gradients.features`), of `dims` dimensions by component."""
    row = float(sum(dims.values())) * work.wide
    largest = max(components.components, key=lambda one: one.size)
    formed = 0.0 if kind == "factorised" else 2.0 * largest.size * work.wide + CHUNK_BYTES
    matrices = sum(_matrix_bytes(one, dims[one.name], kind) for one in components.components)
    together = max(map(len, work.batches(passed)))
    return [
        StageCost("sketch matrices", device=work.weights, host=matrices + RUNTIME_BYTES),
        StageCost(
            "gradient sketches",
            forward=len(passed),
            backward=len(passed),
            flop=work.pass_flop(passed)
            + sum(_sketch_flop(passed, one, dims[one.name], kind) for one in components.components),
            disk=len(passed) * row + STORE,
            device=work.weights + matrices + max(work.pass_bytes(components, passed) + formed, 2 * together * row),
            host=together * row + RUNTIME_BYTES,
            note=f"each example's sketch once, {row / 1e6:.3g} MB of float{8 * work.wide}",
        ),
    ]


def feature_products_cost(work: Workload, components: ComponentMap, dims: dict[str, int]) -> StageCost:
    """Products of the sketches of all pairs (`gradients.feature_products`)."""
    row = sum(dims.values()) * work.wide
    held, piece = feature_memory(work.cache_gb * 1e9, int(row))
    ones = np.ones(max(len(work.train), len(work.pairs)), dtype=np.int64)
    queries = ones[: len(work.pairs)]
    blocks = plan_blocks(work.pairs, queries, ones[: len(work.train)], queries, piece, held)
    most = max(len(block.members) for block in blocks)
    read = len(work.queries) + sum(sum(map(len, block.train)) for block in blocks)
    return StageCost(
        "products of sketches",
        flop=2.0 * work.pairs.size * row / work.wide,
        disk=products_disk(work, len(components)),
        device=work.weights,
        host=(most + BESIDE * piece) * row + 3 * work.table_bytes(len(components)) + RUNTIME_BYTES,
        note=f"{len(blocks)} blocks of queries, a block holds at most {most * row / 1e9:.3g} GB (trainer.cache_gb); "
        f"{read * row / 1e9:,.3g} GB are read",
    )


def _matrix_bytes(component: Component, dim: int, kind: str) -> float:
    outputs, inputs = component.matrix
    if kind != "factorised":
        return SIGN_BYTES[kind] * outputs * inputs
    k_out, k_in = factor_dimensions(dim, outputs, inputs)
    return 4.0 * (outputs * k_out + inputs * k_in)


def _sketch_flop(passed: Sizes, component: Component, dim: int, kind: str) -> float:
    tokens = float(passed.read.sum())
    outputs, inputs = component.matrix
    if kind == "factorised":
        k_out, k_in = factor_dimensions(dim, outputs, inputs)
        return 2.0 * tokens * (outputs * k_out + inputs * k_in + k_out * k_in)
    formed = 2.0 * tokens * component.size
    each = {"trak": 2.0 * dim, "srht": 2.0 * np.log2(max(component.size, 2)), "sjlt": 2.0}[kind]
    return formed + len(passed) * component.size * each
