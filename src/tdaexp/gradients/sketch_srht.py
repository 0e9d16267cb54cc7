"""Subsampled randomised Hadamard transform, block by block, so that memory stays that of the result.

The gradient is cut into blocks x_b of m entries, m the smallest power of two that is not below k, and

    P x = 1/sqrt(k) sum_b L_b R H D_b x_b

with H the m x m Hadamard matrix of +1 and -1, D_b (m) and L_b (k) diagonal matrices of independent random signs, and R
a choice of k of the m rows that all blocks share (Ailon and Chazelle, 2009; the block form: Balabanov et al., 2022,
arXiv:2210.11295). Cost O(numel log k) per example; memory beside the result: a quarter of a byte per parameter.

E<Px, Py> = <x, y>, and the variance is 1/k (|x|^2 |y|^2 + <x, y>^2 - 2 sum_p x_p^2 y_p^2), a dense
Rademacher matrix's, for the pairs of entries in different blocks, and (m - k)/(m - 1) of it for pairs in
one block: never more than Rademacher's.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from tdaexp.gradients.sketch import PackedSigns, Sketch, working_dtype

# Entries of the batch that are transformed at once: what a CPU's second-level cache holds, what fills a GPU.
CHUNK_ENTRIES = {"cpu": 2**17, "cuda": 2**25}
LARGEST_FACTOR_BITS = 7


class SRHTSketch(Sketch):
    """A subsampled randomised Hadamard transform of a gradient of any shape to `dim` dimensions.

    `block` is m, `blocks` their number; `right` holds D [blocks, m], `left` holds L [blocks, k], `rows` [k] holds R.
    """

    def __init__(self, shape: tuple[int, int], dim: int, seed: int):
        super().__init__(shape, dim)
        self.block = 1 << (dim - 1).bit_length()
        self.blocks = -(-self.numel // self.block)
        generator = torch.Generator().manual_seed(seed)
        self.right = PackedSigns(self.blocks, self.block, generator)
        self.left = PackedSigns(self.blocks, dim, generator)
        self.rows = torch.randperm(self.block, generator=generator, device="cpu")[:dim].sort().values

    def _project(self, gradient: Tensor) -> Tensor:
        batch, m = gradient.shape[0], self.block
        result = gradient.new_zeros(batch, self.dim, dtype=working_dtype(gradient))
        self.rows = self.rows.to(gradient.device)
        entries = CHUNK_ENTRIES.get(gradient.device.type, CHUNK_ENTRIES["cpu"])
        step = max(1, entries // (max(batch, 1) * m))
        for start in range(0, self.blocks, step):
            stop = min(start + step, self.blocks)
            chunk = gradient[:, start * m : stop * m].to(result.dtype)
            missing = (stop - start) * m - chunk.shape[1]
            if missing:
                chunk = torch.nn.functional.pad(chunk, (0, missing))
            chunk = chunk.reshape(batch, stop - start, m) * self.right.unpack(start, stop, result)
            chunk = walsh_hadamard(chunk)
            if self.dim < m:
                chunk = chunk.index_select(2, self.rows)
            result += (chunk * self.left.unpack(start, stop, result)).sum(1)
        return result / math.sqrt(self.dim)


def walsh_hadamard(x: Tensor) -> Tensor:
    """Multiply the last axis of x [..., 2^p] by the unnormalised Hadamard matrix in Sylvester's order.

    H of 2^p is the Kronecker product of smaller ones, each applied as a matrix product: far faster in tensors than p
    passes of butterflies, because each pass costs one trip through memory. Raises ValueError for other lengths.
    """
    length = x.shape[-1]
    if length < 1 or length & (length - 1):
        raise ValueError(f"a Hadamard transform needs a power of two, got {length} entries")
    bits = length.bit_length() - 1
    stages = -(-bits // LARGEST_FACTOR_BITS)
    result, inner = x.reshape(-1, length), 1
    for stage in range(stages):
        size = 1 << ((bits + stage) // stages)
        matrix = _hadamard(size, x.dtype, x.device)
        blocks = result.reshape(-1, size, inner)
        result = blocks.squeeze(2) @ matrix if inner == 1 else matrix @ blocks
        inner *= size
    return result.reshape(x.shape)


@functools.cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Build the Hadamard matrix [size, size] by Sylvester's doubling."""
    matrix = torch.ones(1, 1, device="cpu")
    while matrix.shape[0] < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu"), matrix)
    return matrix.to(dtype=dtype, device=device)
