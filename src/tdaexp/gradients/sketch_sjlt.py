"""Sparse Johnson-Lindenstrauss transform: each entry goes, signed, to one bucket in each of s groups.

The k rows are cut into s groups of k_j rows, and every column of P has one entry +-1/sqrt(s) in each (the
block construction of Kane and Nelson, 2014; s = 1 is CountSketch, Charikar et al., 2002). Cost O(s numel)
per example; the buckets and signs take 4 s bytes per parameter.

E<Px, Py> = <x, y>, with the variance (1/s^2 sum_j 1/k_j)(|x|^2 |y|^2 + <x, y>^2 - 2 sum_p x_p^2 y_p^2): when s divides
k this is a dense Rademacher matrix's, 1/k, whatever s is. A larger s makes large errors rarer, not the variance
smaller. On CUDA the order of the sums is not fixed, so that the last bits may differ between two runs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdaexp.gradients.sketch import Sketch, working_dtype

CHUNK_COLUMNS = 2**20  # gradient entries scattered at once, which bounds the memory for 64-bit indices


class SJLTSketch(Sketch):
    """A sparse sign sketch of a gradient of any shape to `dim` dimensions.

    `nonzeros` is s, at most `dim`. `codes` [s, numel] is twice the row that an entry is added to, plus one
    where its sign is negative.
    """

    def __init__(self, shape: tuple[int, int], dim: int, seed: int, nonzeros: int = 2):
        super().__init__(shape, dim)
        groups = min(nonzeros, dim)
        generator = torch.Generator().manual_seed(seed)
        self.codes = torch.empty(groups, self.numel, dtype=torch.int32, device="cpu")
        for group in range(groups):
            start, stop = group * dim // groups, (group + 1) * dim // groups
            self.codes[group].random_(2 * start, 2 * stop, generator=generator)

    def _project(self, gradient: Tensor) -> Tensor:
        self.codes = self.codes.to(gradient.device)
        batch = gradient.shape[0]
        # Positive and negative entries are summed apart and subtracted once: no product per entry.
        sums = gradient.new_zeros(batch, 2 * self.dim, dtype=working_dtype(gradient))
        for start in range(0, self.numel, CHUNK_COLUMNS):
            chunk = gradient[:, start : start + CHUNK_COLUMNS].to(sums.dtype)
            for codes in self.codes[:, start : start + CHUNK_COLUMNS]:
                sums.scatter_add_(1, codes.long().expand(batch, -1), chunk)
        return (sums[:, 0::2] - sums[:, 1::2]) / math.sqrt(len(self.codes))
