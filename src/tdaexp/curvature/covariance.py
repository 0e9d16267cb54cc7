"""Sums of outer products, A = Σ_t a_t a_tᵀ and S = Σ_t δ_t δ_tᵀ, at a little over half the cost of a matrix product.

Source: Bao et al. 2025, equation 4 (K-FAC, Martens and Grosse 2015). Only the blocks on and above the diagonal are
computed, and mirrored once at the end, so that a factor is exactly symmetric. A bias is one more input that is always
1: its row and column are the sum of a_t and the number of positions, with no copy of the inputs. Cost: (1/2 + 1/(2 n))
T d² multiply-adds for n blocks.
"""

from __future__ import annotations

from torch import Tensor

from tdaexp.runtime.accumulation import add_product, multiplied_as_they_are

BLOCK = 256
"""Rows of a block: large enough for a matrix product's full rate."""


def add_second_moment(total: Tensor, x: Tensor, ones: bool = False) -> None:
    """Add Σ_n x_n x_nᵀ to the upper triangle (in blocks) of `total` [d, d], x [n, d] of its dtype or a narrower one.

    With `ones`, `total` is [d + 1, d + 1] and x counts as followed by a constant input of 1.
    """
    width = x.shape[1]
    wide = x.to(total.dtype)
    factor = x if multiplied_as_they_are(x, x) else wide  # converted once, not block by block
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        add_product(total[start:stop, start:width], factor[:, start:stop].T, factor[:, start:])
    if ones:
        total[:width, width] += wide.sum(0)
        total[width, width] += len(x)


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is that of `total` [d, d]."""
    upper = total.triu()
    return upper + upper.triu(1).T
