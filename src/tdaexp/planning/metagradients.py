"""Costs of going back over a training (`paths.metagradient`), of a classifier or a language model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tdaexp.methods.magic import Magic
from tdaexp.paths.blocks import STEPS_PER_BLOCK
from tdaexp.paths.derivatives import TOKENS
from tdaexp.paths.metagradient import VECTORS
from tdaexp.planning.rehearsed import RUNTIME_BYTES
from tdaexp.planning.task_work import TaskWork
from tdaexp.planning.text_work import TextWork
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.rehearsed_store import KEPT, STORE
from tdaexp.training.settings import FitSettings

TANGENT = 2  # passes' arithmetic that a pass's forward-mode derivative takes: of each factor of a product


@dataclass(frozen=True)
class Sizes:
    """What going back over a training depends on.

    `flop` of a pass forwards and backwards over one example, and `bytes` of tensors that one over a step's piece takes;
    `cache_gb` bounds the queries' vectors. `answer`: bytes of the pairs' scores.
    """

    fit: FitSettings
    batch: int
    parameters: int
    components: int
    train: int
    queries: int
    flop: float
    bytes: float
    cache_gb: float
    answer: float


def of_task(method: Magic, work: TaskWork) -> list[StageCost]:
    """Of a classifier's training; a step is one piece."""
    parts, pairs = len(work.components.names), work.queries * work.train
    return _stages(
        method,
        Sizes(
            work.fit, work.batch, work.size, parts, work.train, work.queries, work.training.flop,
            work.batch * work.training.bytes, work.cache_gb, 4.0 * pairs * parts,
        ),
        work.inputs,
    )  # fmt: skip


def of_texts(method: Magic, work: TextWork, fit: FitSettings) -> list[StageCost]:
    """Of a language model's training, whose steps are cut into pieces of so many tokens."""
    longest, batch = int(work.train.tokens.max()), work.batch or fit.batch_size
    rows = min(batch, max(1, min(TOKENS, work.tokens_per_batch) // longest))
    passed, parts = work.training(work.train, rows), len(work.every.names)
    return _stages(
        method,
        Sizes(
            fit, batch, work.every.total, parts, len(work.train), len(work.queries), passed.flop / len(work.train),
            passed.bytes, work.cache_gb, 4.0 * work.pairs.size * parts,
        ),
        0.0,
    )  # fmt: skip


def _stages(method: Magic, sizes: Sizes, inputs: float) -> list[StageCost]:
    fit, vector = sizes.fit, 4.0 * sizes.parameters
    moments = 2 if fit.optimizer == "adamw" else 1
    at_once = min(method.at_once, max(1, int(sizes.cache_gb * 1e9 / (VECTORS * vector))), sizes.queries)
    groups = math.ceil(sizes.queries / at_once)
    held = min(float(fit.steps), max(1.0, method.memory_gb * 1e9 // ((2 + moments) * vector))) * (2 + moments) * vector
    walk = float(fit.steps * sizes.batch)  # passes of a training
    scores = 4.0 * sizes.train * sizes.components
    rows = math.ceil(fit.steps * (2 + moments) * vector / held) + 1
    again = StageCost(
        "the training again",
        forward=walk * (1 + 2 * method.trials),
        backward=walk * (1 + 2 * method.trials),
        flop=walk * (1 + 2 * method.trials) * sizes.flop,
        disk=rows * (1 + moments) * vector + STORE,
        device=2 * vector + sizes.bytes + (2 + moments) * vector,
        host=inputs + RUNTIME_BYTES,
        note=f"once for its states, and {2 * method.trials} times for comparison (method.trials={method.trials})",
    )
    tangents = sizes.queries * walk * (TANGENT * sizes.flop + 2.0 * sizes.parameters)
    back = StageCost(
        "metagradients",
        forward=walk * (3 * groups + sizes.queries),
        backward=walk * (3 * groups + sizes.queries),
        flop=3 * groups * walk * sizes.flop + tangents,
        disk=sizes.queries * ((1 + moments) * vector + scores) + groups * STORE,
        device=2 * vector + held + at_once * (VECTORS * vector + scores + TANGENT * sizes.bytes) + sizes.bytes,
        host=inputs + RUNTIME_BYTES,
        note=f"{groups} groups of at most {at_once} queries, kept every {STEPS_PER_BLOCK} steps; a derivative of a "
        "pass counts as a pass",
    )
    return [
        again,
        back,
        StageCost("answer", disk=KEPT * sizes.answer + 2 * STORE, host=3 * sizes.answer + inputs + RUNTIME_BYTES),
    ]
