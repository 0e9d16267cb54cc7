"""A device that does no work: its tensors have shapes and storage but no numbers, and what is asked of it is counted.

While a `FakeDevice` is active, `DEVICE` is a CPU by another name on which every tensor is fake. What lies on the host
is real as long as it is small; copied from the device, and in large tensors, it is ones, in no memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from tdaexp.runtime.live_bytes import Live

DEVICE = torch.device("cpu", 0)
"""Where a fake model is."""
HOST = torch.device("cpu")
SMALL = 1 << 16
"""Entries of a tensor on the host that is real."""
EIGH_FLOP = 9.0
"""Of a symmetric eigendecomposition with vectors, in cubes of its width."""


class FakeDevice(TorchDispatchMode):
    """The mode; `device` and `host` follow what is alive there, `flop` is the arithmetic so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.device, self.host, self.flop = Live(), Live(), 0.0
        self._inner = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._inner.enter_context(_Values())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._inner.close()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation: on real tensors of the host as it is, else without numbers, which are taken for ones."""
        if function is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all that is asked
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if function is torch.ops.aten.nonzero.default and isinstance(args[0], FakeTensor):
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if not _without_numbers(tensors, args, kwargs):
            result = function(*args, **kwargs)
        else:
            if "generator" in kwargs:
                kwargs = {**kwargs, "generator": None}
            if not all(isinstance(one, FakeTensor) for one in tensors):  # the mode would keep the value of one number
                args, kwargs = tree_map_only(Tensor, self.faked, (args, kwargs))
            with self.fake:
                result = SAME.get(function, function)(*args, **kwargs)
        self._count(function, args, kwargs, result)
        return result

    def faked(self, tensor: Tensor) -> Tensor:
        """The tensor, or a fake one like it."""
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    def _count(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        rule = RULES.get(function._overloadpacket)
        if rule is not None:
            self.flop += rule(*args, **kwargs, out_val=result)
        for one in tree_leaves(result):
            if isinstance(one, FakeTensor):
                (self.host if one.device.index is None else self.device).note(one)


def _without_numbers(tensors: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation has to do with the device, or with much on the host."""
    if any(isinstance(one, FakeTensor) or _is_blank(one) for one in tensors):
        return True
    device = kwargs.get("device")
    if device is not None and torch.device(device).index is not None:
        return True
    shape = args[0] if args and not tensors else ()
    return isinstance(shape, (list, tuple)) and all(isinstance(n, int) for n in shape) and math.prod(shape) > SMALL


class _Values(TorchFunctionMode):
    """Where numbers of tensors that have none are asked for, they are ones; numbers that are sent there are lost."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.tensor and kwargs and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": HOST}).to(kwargs["device"])
        if function is Tensor.numpy and (isinstance(args[0], FakeTensor) or _is_blank(args[0])):
            return blank(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if function is Tensor.cpu and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype, device=HOST).expand(args[0].shape)
        return function(*args, **(kwargs or {}))


def blank(shape: Sequence[int], kind: str | np.dtype[Any]) -> np.ndarray:
    """Ones in no memory, which may be written to."""
    return np.lib.stride_tricks.as_strided(np.ones((), kind), tuple(shape), (0,) * len(shape))


def _is_blank(tensor: Tensor) -> bool:
    return tensor.numel() > SMALL and 0 in tensor.stride()


# Not torch's own counts of attention: those of torch 2.11 refuse keys that have fewer heads than queries.
def _attention_flop(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """Scores and their product with the values."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward_flop(
    _: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, out_val: Any, **___: Any
) -> int:
    """Scores once more; gradients of scores, values, queries and keys."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _added_flop(_: Tensor, left: Tensor, right: Tensor, *__: Any, out_val: Any, **___: Any) -> int:
    return 2 * left.numel() * right.shape[-1]


def _vector_flop(left: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * left.numel()


def _eigh_flop(matrix: Tensor, *_: Any, out_val: Any, **__: Any) -> float:
    return EIGH_FLOP * matrix.shape[-1] ** 3 * math.prod(matrix.shape[:-2])


_aten = torch.ops.aten
SAME = {_aten._unsafe_view.default: _aten.view.default}
"""Operations that say the same of shapes and storage, of which fake tensors keep in mind what the second one gives."""
RULES: dict[Any, Callable[..., float]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
    _aten._linalg_eigh: _eigh_flop,
    _aten.addmm_: _added_flop,
    _aten.mv: _vector_flop,
    _aten.dot: _vector_flop,
}
"""FLOP of operations: those of torch's own counter, and what it leaves out."""
