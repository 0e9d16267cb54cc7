"""Labels drawn from the model's own distribution, which is what makes the factors those of the Gauss-Newton matrix.

The label for position t comes from the logits at t. Each example has random numbers of its own, a function of the seed
and of its id, so that neither batching nor the order of the examples changes a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.fingerprint import fingerprint


def uniforms(ids: Sequence[str], seed: int, width: int) -> Tensor:
    """Random numbers in [0, 1) for the first `width` labels of each example: [B, width] float64."""
    rows = [np.random.default_rng(int(fingerprint(seed, one), 16)).random(width) for one in ids]
    return torch.from_numpy(np.stack(rows))


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """Labels [...] int64 from logits [..., V] by inverting the distribution function at `numbers` [...]."""
    wide = accumulation_dtype(logits.dtype)
    cumulative = logits.to(wide).softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    # Just below 1 a number rounds up to it, and would point behind the last label that is possible.
    at = torch.minimum(numbers.to(logits.device, wide)[..., None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, at, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)
