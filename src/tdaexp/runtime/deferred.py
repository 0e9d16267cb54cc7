"""What keeps a device busy: numbers are fetched once per block, not per batch, and sent without waiting for it.

Reading a tensor's values (`.cpu()`, `.item()`, `nonzero`) makes the host wait until the device is done, and the device
wait until the host has launched more. So checks and results of batches stay on the device until their block is done,
or until there are many of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT_BYTES = 1 << 24
LIMIT_CALLS = 64
"""Bytes, and calls of `add`, that wait at most: so much later does a run end over a NaN."""


class Deferred:
    """Numbers of batches that are still on their device, and what is to be done with them."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[..., None], tuple[Tensor, ...]]] = []
        self._bytes = 0

    def add(self, use: Callable[..., Any], *tensors: Tensor) -> None:
        """Call `use` with the tensors as arrays, at the next `flush` and in the order of the calls.

        The tensors must not be changed any more. What is on the host already is used at once.
        """
        if not any(waits(one) for one in tensors):
            self._use(use, tensors)
            return
        self._waiting.append((use, tensors))
        self._bytes += sum(one.numel() * one.element_size() for one in tensors)
        if self._bytes > LIMIT_BYTES or len(self._waiting) >= LIMIT_CALLS:
            self.flush()

    def flush(self) -> None:
        """Fetch all that waits, and use it."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for use, tensors in waiting:
            self._use(use, tensors)

    @staticmethod
    def _use(use: Callable[..., Any], tensors: tuple[Tensor, ...]) -> None:
        use(*(_array(one.cpu()) for one in tensors))


def _array(tensor: Tensor) -> np.ndarray:
    """As numpy has it: it knows no bfloat16, which a loss of somebody's own may come in."""
    found: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def waits(tensor: Tensor) -> bool:
    """Whether reading the tensor's values would wait for a device."""
    return tensor.device.type != "cpu"


def send(values: Tensor | np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy from the host to a device without waiting for it."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.to(dtype).pin_memory()  # only from such memory, and of the same type, does a copy not wait
    return tensor.to(device, dtype, non_blocking=True)


def fetch(values: Tensor) -> Tensor:
    """Begin to copy to the host: the copy is complete once a `Deferred` that was filled later has been flushed."""
    return values.to("cpu", non_blocking=True)
