"""Costs of iterative solvers, whose number of products depends on numbers (sketches: `sketch_costs`).

Each function counts what the code of the same name in `gradients` and `curvature` does. Peaks of memory include the
weights.
"""

from __future__ import annotations

import numpy as np

from tdaexp.costs.workload import KEPT, RUNTIME_BYTES, STORE, Workload
from tdaexp.data.sizes import Sizes
from tdaexp.gradients.schedule import plan_blocks
from tdaexp.models.components import ComponentMap
from tdaexp.runtime.costs import StageCost

REPEATED = 0.5  # of their size is what squared norms take: those of a candidate stand at each of its queries


def products_disk(work: Workload, components: int) -> float:
    """Size of stored products and squared norms of all pairs."""
    size = work.table_bytes(components)
    return STORE + KEPT * size + REPEATED * size + KEPT * len(work.queries) * components * work.wide


def product_cost(work: Workload, examples: Sizes) -> tuple[float, float]:
    """FLOP, and forward-pass equivalents, of one product of a vector with the GGN: about four forward passes."""
    return 4.0 * work.forward_flop(examples), 4.0 * len(examples)


def solver_cost(work: Workload, size: int, examples: Sizes, products: float, queries: int, at_once: int) -> StageCost:
    """An iterative inverse of `queries` gradients [size], `at_once` together, over the GGN's examples."""
    flop, passes = product_cost(work, examples)
    vectors = float(size * work.wide)
    together = min(at_once, queries)
    activations = work.pass_bytes(work.components(), Workload.some(examples, [int(examples.tokens.argmax())]))
    return StageCost(
        "solver",
        forward=products * passes,
        flop=products * flop + work.pass_flop(Workload.some(work.queries, range(queries))),
        disk=KEPT * queries * vectors,
        device=work.weights + together * (8 * vectors + activations),
        host=together * vectors + RUNTIME_BYTES,
        note=f"at most {products:,.0f} products with the curvature, each about four forward passes over "
        f"{len(examples)} examples",
    )


def against_cost(work: Workload, components: ComponentMap) -> StageCost:
    """Training gradients against explicit vectors (`gradients.vector_products`)."""
    size = float(components.sizes.sum()) * work.wide
    each = np.full(len(work.queries), size)
    blocks = plan_blocks(
        work.pairs, np.ones(len(each)), work.train.tokens, each, work.tokens_per_batch, work.cache_gb * 1e9
    )
    runs = [index for block in blocks for batch in block.train for index in batch]
    passed = work.some(work.train, runs)
    most = max(len(block.members) for block in blocks)
    return StageCost(
        "influence",
        forward=len(passed),
        backward=len(passed),
        flop=work.pass_flop(passed) + 2.0 * (float(passed.read.sum()) + work.pairs.size) * size / work.wide,
        disk=KEPT * work.table_bytes(len(components)),
        device=work.weights + most * size + work.pass_bytes(components, work.candidates) + (1 << 28),
        host=most * size + RUNTIME_BYTES,
        note=f"{len(blocks)} blocks of queries; a query's vector takes {size / 1e9:.3g} GB (trainer.cache_gb)",
    )
