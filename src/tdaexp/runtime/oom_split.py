"""Work that runs out of memory is halved and goes on."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

from tdaexp.runtime.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)
TOO_SMALL = (
    "out of memory even with one example at a time; take a device with more memory, a shorter dataset.max_length, "
    "fewer components, or trainer.precision=bfloat16"
)

OUT_OF_MEMORY = (
    "out of memory in work that cannot be cut smaller by itself; lower trainer.tokens_per_batch or trainer.cache_gb "
    "(decoding.batch_size for completions, trainer.fit.batch_size for a training), or take trainer.precision=bfloat16 "
    "or a device with more memory; what is finished is kept"
)


class Shrinking(Generic[T, R]):
    """Calls `work` on items; one that does not fit the memory is done in parts, and so are all that come after it.

    `halves` cuts an item into one or two that need less, nothing where there is no less; `join` puts their results
    together. Results may differ in their last bits, because other examples share a batch. Errors (UserError): even the
    smallest part does not fit.
    """

    def __init__(self, work: Callable[[T], R], halves: Callable[[T], list[T]], join: Callable[[list[R]], R]) -> None:
        self.work, self.halves, self.join = work, halves, join
        self.depth = 0  # how often items are halved before they are tried

    def __call__(self, item: T) -> R:
        """The result of an item."""
        return self._at(item, 0)

    def _at(self, item: T, depth: int) -> R:
        parts = self.halves(item) if depth < self.depth else []
        if not parts:
            try:
                return self.work(item)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Behind the handler, whose exception holds on to the tensors.
            free_memory()
            parts = self.halves(item)
            if not parts:
                raise UserError(TOO_SMALL)
            self.depth = max(self.depth, depth + 1)
            log.warning("out of memory: batches are halved from here on, for the %d. time", self.depth)
        return self.join([self._at(part, depth + 1) for part in parts])


def two(members: list[int]) -> list[list[int]]:
    """Both halves of a list; nothing where it has one member."""
    middle = len(members) // 2
    return [members[:middle], members[middle:]] if middle else []


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, one part's rows behind another's."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch on a CPU


@contextlib.contextmanager
def plain_memory_errors() -> Iterator[None]:
    """Turn a lack of memory that nothing could mend into one line (UserError)."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not out_of_memory(error):
            raise
        raise UserError(OUT_OF_MEMORY) from error


def free_memory() -> None:
    """Give back what torch keeps for later."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
