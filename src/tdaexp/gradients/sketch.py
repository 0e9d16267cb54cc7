"""What every random projection of a component's gradient shares: its interface, its seed, its random signs.

A sketch is a random linear map P [k, numel] with E<Px, Py> = <x, y>, so that dot products of sketches
estimate dot products of gradients (Johnson and Lindenstrauss, 1984; Park et al., 2023, section 3). A
component's gradient G [d_out, d_in] counts as the row-major vector of its entries. The seed depends on the
run's seed, the component's name and the kind of sketch alone, and random numbers are drawn on the CPU
(traker's own sketch excepted): device, batch, rank and process change nothing.
"""

from __future__ import annotations

import abc
import functools
import hashlib

import torch
from torch import Tensor


class Sketch(abc.ABC):
    """A seeded random projection of one component's gradient to `dim` dimensions.

    `shape` is (d_out, d_in) of the gradient matrix; `numel` is their product; a plain vector has d_in = 1.
    """

    def __init__(self, shape: tuple[int, int], dim: int):
        self.shape = shape
        self.numel = shape[0] * shape[1]
        self.dim = dim

    def project_gradient(self, gradient: Tensor) -> Tensor:
        """Project explicit gradients [batch, numel] to [batch, dim].

        The result is float32, or float64 where the gradients are. Raises ValueError when these do not have
        `numel` entries each.
        """
        if gradient.ndim != 2 or gradient.shape[1] != self.numel:
            raise ValueError(f"expected gradients [batch, {self.numel}], got {tuple(gradient.shape)}")
        return self._project(gradient)

    @abc.abstractmethod
    def _project(self, gradient: Tensor) -> Tensor:
        """Project gradients [batch, numel], already checked, to [batch, dim]."""


def component_seed(seed: int, name: str, kind: str) -> int:
    """Return a 63-bit seed for one component's sketch, the same in every process (unlike Python's `hash`)."""
    digest = hashlib.blake2b(f"{seed}|{kind}|{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 when any of the tensors is float64."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


class PackedSigns:
    """A random matrix [rows, columns] of independent, fair +1 and -1, kept at one bit each.

    A sign per parameter is what the sketches of large components would spend most memory on: a 100 M
    embedding's signs are 13 MB here, and 400 MB in float32.
    """

    def __init__(self, rows: int, columns: int, generator: torch.Generator):
        self.columns = columns
        size = (rows, -(-columns // 8))
        self._bytes = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8, device="cpu")

    def unpack(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Return rows start to stop, +1 or -1 [stop - start, columns], in type and place as `like`."""
        self._bytes = self._bytes.to(like.device)
        block = self._bytes[start:stop]
        signs = _signs_of_byte(like.dtype, like.device).index_select(0, block.flatten().int())
        return signs.view(block.shape[0], -1)[:, : self.columns]


@functools.cache
def _signs_of_byte(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Tabulate a byte's eight bits, lowest first, as signs [256, 8]: +1 for a set bit, -1 for a clear one."""
    bits = (torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu")) & 1
    return (2 * bits - 1).to(dtype=dtype, device=device)
