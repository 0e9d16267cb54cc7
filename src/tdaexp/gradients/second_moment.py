"""The mean of squared per-example gradients, entry by entry: the diagonal of their second moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.rehearsal import padded, sampled

CHUNK_BYTES = 1 << 28
"""Explicit gradients that are in memory at a time; a constant, because results may depend on it in the last bits."""
SAVES = 4
"""How often the pass is saved."""
ROUNDING = 1e-4
"""Of a component's root mean squared gradient: what an entry's may be by rounding alone."""


def second_moment(gradients: Gradients, *, store: Path, tokens_per_batch: int) -> Tensor:
    """(1/n) Σ_i g_i² [size] over all components, in their layout (`vectors`), on the CPU in float32 at least.

    `store` is a folder named after all that it depends on. Errors (UserError): NaN or Inf in a gradient.
    """
    gradients.check(range(len(gradients)), "training")
    size, batches = int(gradients.components.sizes.sum()), gradients.batches(tokens_per_batch)
    parts = [part.tolist() for part in np.array_split(np.arange(len(batches)), min(SAVES, len(batches)))]
    arrays: dict[str, tuple[tuple[int, ...], str]] = {"squares": ((len(parts), size), gradients.kind)}
    blocks = BlockStore(store, arrays, [slice(n, n + 1) for n in range(len(parts))], compressed=False)
    form = forming(gradients, tokens_per_batch)
    with blocks.pending() as missing:
        for number in blocks.each(missing, "squared gradients", lambda n: float(len(parts[n]))):
            total = torch.zeros(size, dtype=gradients.dtype, device=gradients.device)
            for rows in explicit_rows(gradients, [batches[n] for n in parts[number]], form):
                total += rows.square().sum(0)
            blocks.write(number, {"squares": total.cpu().numpy()[None]})
    kept = blocks.rows()["squares"]
    whole = torch.from_numpy(kept[0])
    for number in range(1, len(parts)):
        whole = whole + torch.from_numpy(kept[number])
    return whole / len(gradients)


def inverse_root(squares: Tensor) -> Tensor:
    """1 / (√V + ε) of one component's mean squared gradients, ε a share of their root mean.

    A gradient that is zero but for rounding stays so. An entry in which no training example has one adds to no product,
    and must not fill the norms: 0.
    """
    roots = squares.sqrt() + ROUNDING * squares.mean().sqrt()
    return torch.where(squares > 0, 1 / roots, torch.zeros_like(roots))


Form = Callable[[list[int]], Tensor]
"""Numbers of examples [n] to their gradients [n, size]."""


def forming(gradients: Gradients, tokens_per_batch: int) -> Form:
    """Gradients of a few examples, in halves where memory runs out."""
    return Shrinking(lambda members: gradient_vectors(gradients, members, tokens_per_batch), two, torch.cat)


def explicit_rows(gradients: Gradients, batches: list[list[int]], form: Form) -> Iterator[Tensor]:
    """Gradients [n, size] of the examples in some batches, as many at a time as `CHUNK_BYTES` hold."""
    size = int(gradients.components.sizes.sum()) * gradients.dtype.itemsize
    step = max(1, CHUNK_BYTES // size)
    cut = [batch[start : start + step] for batch in batches for start in range(0, len(batch), step)]
    for members in sampled(cut, padded(gradients.lengths)):
        yield form(members)
