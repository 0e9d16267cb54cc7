"""Bytes of the tensors that are alive, now and at most."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Live:
    """Bytes of tensors that are alive `now`, and the most at one time since `peak` was set back."""

    now: int = 0
    peak: int = 0
    _seen: set[int] = field(default_factory=set)

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class LiveBytes(TorchDispatchMode, Live):
    """Follows all tensors that operations make while it is active."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        Live.__init__(self)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and note the storage of what it returns."""
        result = function(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self.note(one)
        return result
