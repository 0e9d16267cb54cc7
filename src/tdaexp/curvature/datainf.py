"""DataInf's inverse curvature: the mean of inverses in place of the inverse of the mean, in closed form.

Source: Kwon et al. 2024, section 3. With g_i a training example's loss gradient of one component, d entries,

    (1/n) Σ_i (g_i g_iᵀ + λI)⁻¹ v  =  (1/λ) [v − (1/n) Σ_i (g_i·v) / (λ + |g_i|²) g_i],      λ = 0.1 Σ_i |g_i|² / (n d)

by default, for each component by itself. Cost for a block of vectors: one pass over the training examples, whose
gradients are formed explicitly, and two products of their size for every pair; nothing is inverted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.second_moment import Form, explicit_rows, forming
from tdaexp.gradients.vectors import VectorSpace


def mean_of_inverses(
    gradients: Gradients, vectors: Tensor, damping: np.ndarray, tokens_per_batch: int, form: Form | None = None
) -> Tensor:
    """(1/n) Σ_i (g_i g_iᵀ + λI)⁻¹ of each component, applied to `vectors` [q, size]; `damping` λ [K] above 0.

    `form` makes the gradients g (`forming`), where it is to know what did not fit before. Memory: three times the
    vectors, and a chunk of explicit gradients.
    """
    space, taken = VectorSpace(gradients.model, gradients.components), torch.zeros_like(vectors)
    amounts = dict(zip(space.components.names, damping.tolist(), strict=True))
    places = dict(zip(space.components.names, space.slices, strict=True))
    form = form or forming(gradients, tokens_per_batch)
    for rows in explicit_rows(gradients, gradients.batches(tokens_per_batch), form):
        for name, place in places.items():
            own = rows[:, place]
            weights = (vectors[:, place] @ own.T) / (amounts[name] + own.square().sum(1))
            taken[:, place].addmm_(weights, own)
    found = vectors - taken / len(gradients)
    for name, place in places.items():
        found[:, place] /= amounts[name]
    return found
