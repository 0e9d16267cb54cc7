"""Costs of the stages that methods have in common: products, factors, influence, solvers (sketches: `sketch_costs`).

Each function counts what the code of the same name in `gradients` and `curvature` does. Peaks of memory include the
weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from tdaexp.costs.planned import planned
from tdaexp.costs.workload import KEPT, RUNTIME_BYTES, STORE, Workload
from tdaexp.curvature import covariance, lambdas
from tdaexp.curvature.inverse import PROBES, InverseSettings
from tdaexp.curvature.layers import Layers, layers_of
from tdaexp.data.sizes import Sizes
from tdaexp.gradients.factors import explicit_is_cheaper
from tdaexp.gradients.memory import held_bytes
from tdaexp.gradients.pairs import CHUNK_BYTES
from tdaexp.gradients.schedule import Block, plan_blocks
from tdaexp.models.components import Component, ComponentMap
from tdaexp.objectives.base import Reach
from tdaexp.runtime.costs import StageCost

EIGH_FLOP = 9.0  # of a symmetric eigendecomposition with vectors, in cubes of its width
EIGH_COPIES = 6.0  # matrices in float64 that it has in memory: covariance, its symmetric part, vectors, workspace
REPEATED = 0.5  # of their size is what squared norms take: those of a candidate stand at each of its queries
FACTOR_CACHE = 2e9  # what `Factors` keeps between calls


def products_cost(work: Workload, components: ComponentMap) -> StageCost:
    """Component products of all pairs (`gradients.products`)."""
    held = held_bytes(components, Reach(work.queries.read, work.queries.predicted), work.dtype)
    blocks = plan_blocks(
        work.pairs, work.queries.tokens, work.train.tokens, held, work.tokens_per_batch, work.cache_gb * 1e9
    )
    runs = [index for block in blocks for batch in block.train for index in batch]
    passed = Sizes.joined([work.queries, work.some(work.train, runs)])
    flop = work.pass_flop(passed) + sum(_dots_flop(work, one, runs) for one in components.components)
    kept = max(sum(held[batch].sum() for batch in block.queries) for block in blocks)
    return StageCost(
        "gradient products",
        forward=len(passed),
        backward=len(passed),
        flop=flop,
        disk=products_disk(work, len(components)),
        device=work.weights + kept + max(work.pass_bytes(components, one) for one in (work.queries, work.candidates))
        + CHUNK_BYTES * work.wide / 8,
        host=3 * work.table_bytes(len(components)) + RUNTIME_BYTES,
        note=f"{len(blocks)} blocks of queries; a block holds at most {kept / 1e9:.3g} GB (trainer.cache_gb)",
    )  # fmt: skip


def products_disk(work: Workload, components: int) -> float:
    """Size of stored products and squared norms of all pairs."""
    size = work.table_bytes(components)
    return STORE + KEPT * size + REPEATED * size + KEPT * len(work.queries) * components * work.wide


def _dots_flop(work: Workload, component: Component, runs: list[int]) -> float:
    """Products of pairs and squared norms of one component, in the cheaper of the two forms at the mean length."""
    queries, train = work.queries, work.train
    pairs, both = work.pairs.size, len(work.queries) + len(runs)
    if component.parts[0].kind == "norm":
        return 2.0 * component.size * (pairs + both)
    if len(component.parts) > 1 or component.parts[0].kind == "embedding":
        widths = component.matrix[1] * (3 if component.tied else 1)
        return 2.0 * (pairs + both) * float(queries.read.mean() * train.read.mean()) * widths
    head = component.name == "lm_head"
    lengths = (queries.predicted, train.predicted) if head else (queries.read, train.read)
    q, t = (float(one.mean()) for one in lengths)
    outputs, inputs = component.matrix
    if explicit_is_cheaper(int(q), outputs, inputs):
        return 2.0 * outputs * inputs * (q * len(queries) + t * len(runs) + pairs + both)
    return 2.0 * (pairs * q * t + len(queries) * q * q + len(runs) * t * t) * (outputs + inputs)


def factor_costs(
    work: Workload, layers: Layers, readers: dict[str, str], mode: str, partitions: int, saves: int, where: str = ""
) -> list[StageCost]:
    """The phases of a fit over the training set (`curvature.phases`). `readers` as there."""
    if mode == "identity":
        return []
    sizes, wide = work.train, work.wide
    read, parts = sizes.read, min(partitions, len(layers))
    sides = [layer.outputs for layer in layers.layers]
    sides += [layer.inputs for layer in layers.layers if readers[layer.name] == layer.name]
    squares, entries = float(sum(width**2 for width in sides)), float(sum(layer.size for layer in layers.layers))
    saves = min(saves, len(work.batches(sizes)))
    passes = float(parts * len(sizes))
    flop, memory = parts * work.pass_flop(sizes), work.weights + work.pass_bytes(layers.map, sizes)
    labels = 4.0 * len(sizes) * float(sizes.predicted.max())
    rotated = mode == "ekfac"
    squared = 2.0 * sum(
        lambdas.multiply_adds(int(tokens), layer.outputs, layer.inputs - layer.bias, layer.bias, rotated) * int(count)
        for tokens, count in Counter(read.tolist()).items()
        for layer in layers.layers
    )
    last = StageCost(
        f"{where}{'Λ' if rotated else 'diagonal'}",
        forward=passes,
        backward=passes,
        flop=flop + squared,
        disk=saves * entries * wide + (0 if rotated else labels),
        device=memory + (entries + rotated * squares) / parts * wide,  # sums, and the eigenvectors of the same layers
        host=rotated * float(max(sides)) ** 2 * wide + RUNTIME_BYTES,
    )
    if mode == "diagonal":
        return [last]
    moments = 2.0 * sum(covariance.multiply_adds(int(read.sum()), width) for width in sides)
    fit = StageCost(
        f"{where}covariances",
        forward=passes,
        backward=passes,
        flop=flop + moments,
        disk=saves * squares * wide + labels,
        device=max(memory + squares / parts * wide, work.weights + 2 * squares / parts * wide),
        host=labels + RUNTIME_BYTES,
        note=f"{len(layers)} matrices, {saves} partial sums of {squares * wide / 1e9:.3g} GB each (method.saves)",
    )
    basis = StageCost(
        f"{where}eigenbases",
        flop=EIGH_FLOP * float(sum(width**3 for width in sides)),
        disk=squares * wide + 8.0 * sum(sides),
        device=work.weights,
        host=EIGH_COPIES * 8.0 * max(sides) ** 2 + RUNTIME_BYTES,
        note=f"one matrix at a time on the CPU, the widest {max(sides):,}",
    )
    return [fit, basis, last] if rotated else [fit, basis]


def scores_cost(
    work: Workload, parts: list[Layers], factors: str, query_rank: int | None, loaded: float = 1.0, fits: int = 1
) -> StageCost:
    """Preconditioned queries against their candidates, a block of layers at a time (`curvature.layer_blocks`).

    `loaded` models, `fits` inverses.
    """
    costs = [_part_cost(work, part, factors, query_rank, loaded, fits) for part in parts]
    forward, backward, flop, disk = (
        sum(getattr(one, name) for one in costs) for name in ("forward", "backward", "flop", "disk")
    )
    device, host = (max(getattr(one, name) for one in costs) for name in ("device", "host"))
    return StageCost("influence", forward, backward, flop, disk, device, host, costs[0].note)


def _part_cost(
    work: Workload, layers: Layers, factors: str, query_rank: int | None, loaded: float, fits: int
) -> StageCost:
    entries = float(sum(layer.size for layer in layers.layers))
    held = entries
    if query_rank is not None:
        held = float(sum(min(one.size, query_rank * (one.outputs + one.inputs)) for one in layers.layers))
    each = np.full(len(work.queries), held * work.wide)
    blocks = plan_blocks(
        work.pairs, work.queries.tokens, work.train.tokens, each, work.tokens_per_batch, work.cache_gb * 1e9
    )
    runs = [index for block in blocks for batch in block.train for index in batch]
    passed = Sizes.joined([work.queries, work.some(work.train, runs)])
    inverse = sum(4.0 * one.size * (one.outputs + one.inputs) for one in layers.layers) * (factors != "identity")
    formed = 2.0 * entries * float(passed.read.sum())
    largest = max(one.size for one in layers.layers) * work.wide
    return StageCost(
        "influence",
        forward=len(passed),
        backward=len(passed),
        flop=work.pass_flop(passed) + formed + fits * len(work.queries) * inverse + 2.0 * work.pairs.size * held,
        disk=KEPT * work.table_bytes(len(layers.components)),
        device=loaded * work.weights
        + max(_held(work, block, held * work.wide, largest) for block in blocks)
        + max(work.pass_bytes(layers.map, one) for one in (work.queries, work.candidates)),
        host=fits * min(FACTOR_CACHE, _factor_bytes(layers, work.wide)) * (factors != "identity") + RUNTIME_BYTES,
        note=f"{len(blocks)} blocks of queries; a query holds {held * work.wide / 1e9:.3g} GB (trainer.cache_gb)",
    )


def _held(work: Workload, block: Block, each: float, largest: float) -> float:
    """Queries of a block, and one layer's gradients of a batch on the way."""
    return len(block.members) * each + 4 * max(map(len, block.queries)) * largest


def _factor_bytes(layers: Layers, wide: int) -> float:
    return float(sum(one.outputs**2 + one.inputs**2 + one.size for one in layers.layers) * wide)


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


def inverse_cost(
    settings: InverseSettings, work: Workload, products: Callable[[int], float], at_once: int
) -> list[StageCost]:
    """The solver, with at most `products` of so many queries, training gradients against its vectors, the answer."""
    components = layers_of(planned(work, settings.part, settings.components)).components
    answered = work.answered(settings.queries)
    examples = work.some(work.train, range(min(settings.examples or len(work.train), len(work.train))))
    count, size = len(answered.queries), int(components.sizes.sum())
    most = products(count) + PROBES * (settings.damping is None)
    solver = solver_cost(answered, size, examples, most, count, at_once)
    return [solver, against_cost(answered, components), answered.answer(len(components), self_products=False)]


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
