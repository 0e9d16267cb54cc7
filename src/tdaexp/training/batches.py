"""Which examples are in which batch: a pure function of the seed and the step, so that any step can be replayed."""

from __future__ import annotations

import functools

import numpy as np


def batch_indices(step: int, *, seed: int, examples: int, batch_size: int) -> np.ndarray:
    """Indices [batch_size] int64 of the examples in the batch of `step` (from 0).

    The batches cut an endless stream of epochs into equal pieces; each epoch is a permutation of all examples, drawn
    from (seed, epoch). A batch may span the end of an epoch, so every example is seen equally often.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, examples)
    orders = {int(epoch): _order(seed, int(epoch), examples) for epoch in np.unique(epochs)}
    return np.array([orders[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)], dtype=np.int64)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def epoch_batch(step: int, *, seed: int, examples: int, batch_size: int) -> np.ndarray:
    """Indices of the examples in the batch of `step` where each epoch is cut by itself: its last batch may be smaller.

    A batch of all examples takes them in their own order.
    """
    if batch_size >= examples:
        return np.arange(examples, dtype=np.int64)
    epoch, place = divmod(step, -(-examples // batch_size))
    return _order(seed, epoch, examples)[place * batch_size : (place + 1) * batch_size].astype(np.int64)


def step_batch(step: int, *, kind: str, seed: int, examples: int, batch_size: int) -> np.ndarray:
    """Indices of the examples in the batch of `step`, by `trainer.fit.batches`: `stream` or `epochs`."""
    cut = epoch_batch if kind == "epochs" else batch_indices
    return cut(step, seed=seed, examples=examples, batch_size=batch_size)
