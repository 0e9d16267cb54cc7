"""DataInf's inverse curvature: the mean of inverses in place of the inverse of the mean, in closed form.

Source: Kwon et al. 2024, section 3. With g_i a training example's loss gradient of one component, d entries,

    (1/n) Σ_i (g_i g_iᵀ + λI)⁻¹ v  =  (1/λ) [v − (1/n) Σ_i (g_i·v) / (λ + |g_i|²) g_i],        λ = 0.1 Σ_i |g_i|² / (n d)

by default, for each component by itself. Cost for a block of vectors: one pass over the training examples, whose
gradients are formed explicitly, and two products of their size for every pair; nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.rehearsal import padded, sampled

CHUNK_BYTES = 1 << 28
"""Explicit gradients that are in memory at a time; a constant, because results may depend on it in the last bits."""
SAVES = 8
"""How often a pass for squared norms is saved."""


def mean_squares(gradients: Gradients, *, store: Path, tokens_per_batch: int) -> np.ndarray:
    """Mean eigenvalue of each component's (1/n) Σ_i g_i g_iᵀ [K] float64: the mean of |g_i|² / d.

    `store` is a folder named after all that it depends on. Errors (UserError): NaN or Inf in a gradient.
    """
    gradients.check(range(len(gradients)), "training")
    places = VectorSpace(gradients.model, gradients.components).slices
    batches = gradients.batches(tokens_per_batch)
    parts = [part.tolist() for part in np.array_split(np.arange(len(batches)), min(SAVES, len(batches)))]
    arrays: dict[str, tuple[tuple[int, ...], str]] = {"squares": ((len(parts), len(places)), "float64")}
    blocks = BlockStore(store, arrays, [slice(n, n + 1) for n in range(len(parts))])
    with blocks.pending() as missing:
        for number in blocks.each(missing, "squared gradients", lambda n: float(len(parts[n]))):
            total = torch.zeros(len(places), dtype=torch.float64, device=gradients.device)
            for rows in _explicit(gradients, [batches[n] for n in parts[number]], tokens_per_batch):
                total += torch.stack([rows[:, place].double().square().sum() for place in places])
            blocks.write(number, {"squares": total.cpu().numpy()[None]})
    mean: np.ndarray = blocks.read()["squares"].sum(0) / (len(gradients) * gradients.components.sizes)
    return mean


def mean_of_inverses(gradients: Gradients, vectors: Tensor, damping: np.ndarray, tokens_per_batch: int) -> Tensor:
    """(1/n) Σ_i (g_i g_iᵀ + λI)⁻¹ of each component, applied to `vectors` [q, size]; `damping` λ [K] above 0.

    Memory: three times the vectors, and a chunk of explicit gradients.
    """
    space, taken = VectorSpace(gradients.model, gradients.components), torch.zeros_like(vectors)
    amounts = dict(zip(space.components.names, damping.tolist(), strict=True))
    places = dict(zip(space.components.names, space.slices, strict=True))
    for rows in _explicit(gradients, gradients.batches(tokens_per_batch), tokens_per_batch):
        for name, place in places.items():
            own = rows[:, place]
            weights = (vectors[:, place] @ own.T) / (amounts[name] + own.square().sum(1))
            taken[:, place].addmm_(weights, own)
    found = vectors - taken / len(gradients)
    for name, place in places.items():
        found[:, place] /= amounts[name]
    return found


def _explicit(gradients: Gradients, batches: list[list[int]], tokens_per_batch: int) -> Iterator[Tensor]:
    """Gradients [n, size] of the examples in some batches, as many at a time as fit."""
    size = int(gradients.components.sizes.sum()) * gradients.dtype.itemsize
    step = max(1, CHUNK_BYTES // size)
    cut = [batch[start : start + step] for batch in batches for start in range(0, len(batch), step)]
    for members in sampled(cut, padded(gradients.lengths)):
        yield gradient_vectors(gradients, members, tokens_per_batch)
