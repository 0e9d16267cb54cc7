"""A rehearsal: the program's own code on tensors that have shapes but no numbers, to see what a run would take.

Inside a `Rehearsal` the device that work is done on is `DEVICE`, a CPU by another name. Whatever lies there is a fake
tensor: every operation happens, with its shapes, storage and arithmetic counted, and no number is computed. What lies
on the host is real, as long as it is small; copied from the device it is ones, in no memory. Blocks are not written
(`rehearsed_store`), and where equal work is done again and again one piece of it stands for all (`sampled`).
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

T = TypeVar("T")
DEVICE = torch.device("cpu", 0)
"""Where a rehearsed model is."""
HOST = torch.device("cpu")
SMALL = 1 << 16
"""Entries of a tensor on the host that is real."""
EIGH_FLOP = 9.0
"""Of a symmetric eigendecomposition with vectors, in cubes of its width: what torch's own counter leaves out."""

_current: Rehearsal | None = None


def current() -> Rehearsal | None:
    """The rehearsal that is going on."""
    return _current


def sampled(
    items: Sequence[T],
    size: Callable[[T], float],
    examples: Callable[[T], float] = lambda one: len(one),  # type: ignore[arg-type]
) -> Iterable[T]:
    """All items; in a rehearsal the largest of them, which stands for all in proportion to their `size`.

    Passes are counted in `examples`, so that their number is exact.
    """
    return items if _current is None or len(items) < 2 else _current.sample(items, size, examples)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """What is done inside the block counts for nothing in a rehearsal: a look at one example."""
    before = None if _current is None else Spent(**vars(_current.spent))
    yield
    if _current is not None and before is not None:
        _current.spent = before


def padded(lengths: np.ndarray) -> Callable[[Sequence[int]], float]:
    """Size of a batch of examples of these lengths: positions, padding included."""
    return lambda members: len(members) * float(lengths[list(members)].max()) if len(members) else 0.0


@dataclass
class Spent:
    """What was done so far: passes in examples, and FLOP."""

    forward: float = 0.0
    backward: float = 0.0
    flop: float = 0.0

    def since(self, before: Spent) -> Spent:
        """What came after `before`."""
        return Spent(self.forward - before.forward, self.backward - before.backward, self.flop - before.flop)


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


@dataclass
class StageTaken:
    """What a stage took: passes and FLOP, peaks of bytes beside the weights on the `device` and on the `host`, `disk`.

    `blocks` of work it was cut into.
    """

    spent: Spent = field(default_factory=Spent)
    device: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    blocks: int = 0


class Rehearsal(TorchDispatchMode):
    """The mode in which code is rehearsed; `stages` has what was done, in order and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.device, self.host, self.spent = Live(), Live(), Spent()
        self.stages: dict[str, StageTaken] = {}
        self.stores: dict[Any, Any] = {}
        self.same_candidates = False
        self._told = Spent()
        self._inner = contextlib.ExitStack()

    def __enter__(self) -> Rehearsal:
        global _current
        _current = self
        self._inner.enter_context(_Values())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        global _current
        super().__exit__(*error)
        self._inner.close()
        _current = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation: on real tensors of the host as it is, else without numbers."""
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if not self._without_numbers(function, tensors, args, kwargs):
            result = function(*args, **kwargs)
            self._count(function, args, kwargs, result)
            return result
        if "generator" in kwargs:
            kwargs = {**kwargs, "generator": None}
        if not all(
            isinstance(one, FakeTensor) for one in tensors
        ):  # of one number the mode itself would keep the value
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        with self.fake:
            result = function(*args, **kwargs)
        self._count(function, args, kwargs, result)
        return result

    def _faked(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    @staticmethod
    def _without_numbers(function: Any, tensors: list[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the operation has to do with the device, or with much on the host."""
        if any(isinstance(one, FakeTensor) or _is_blank(one) for one in tensors):
            return True
        device = kwargs.get("device")
        if device is not None and torch.device(device).index is not None:
            return True
        shape = args[0] if args and not tensors else ()
        return isinstance(shape, (list, tuple)) and all(isinstance(n, int) for n in shape) and math.prod(shape) > SMALL

    def _count(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        rule = RULES.get(function._overloadpacket)
        if rule is not None:
            self.spent.flop += rule(*args, **kwargs, out_val=result)
        for one in tree_leaves(result):
            if isinstance(one, FakeTensor):
                (self.host if one.device.index is None else self.device).note(one)

    @property
    def left(self) -> Spent:
        """What was done after the last stage."""
        return self.spent.since(self._told)

    def watch(self, top: nn.Module) -> None:
        """Count passes by the module that a model's outputs come from."""

        def arrived(gradient: Tensor) -> None:
            self.spent.backward += len(gradient)

        def ran(_: nn.Module, __: Any, output: Tensor) -> None:
            self.spent.forward += len(output)
            if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
                output.register_hook(arrived)

        top.register_forward_hook(ran)

    def sample(self, items: Sequence[T], size: Callable[[T], float], examples: Callable[[T], float]) -> Iterator[T]:
        """The largest item, counted as often as all of them are large."""
        sizes = [size(one) for one in items]
        chosen = items[int(np.argmax(sizes))]
        before = Spent(**vars(self.spent))
        yield chosen
        taken, passes = self.spent.since(before), sum(map(examples, items)) / max(examples(chosen), 1)
        self.spent.forward = before.forward + passes * taken.forward
        self.spent.backward = before.backward + passes * taken.backward
        self.spent.flop = before.flop + taken.flop * sum(sizes) / max(max(sizes), 1)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[StageTaken]:
        """Put down under a name what was done since the last stage, up to the block's end."""
        stage = self.stages.setdefault(name, StageTaken())
        self.device.peak, self.host.peak = self.device.now, self.host.now
        yield stage
        taken, self._told = self.left, Spent(**vars(self.spent))
        for key, value in vars(taken).items():
            setattr(stage.spent, key, getattr(stage.spent, key) + value)
        stage.device, stage.host = max(stage.device, self.device.peak), max(stage.host, self.host.peak)


class _Values(TorchFunctionMode):
    """Where numbers of tensors that have none are asked for, they are ones."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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


def _attention_flop(query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flop(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


def _eigh_flop(matrix: Tensor, *_: Any, out_val: Any, **__: Any) -> float:
    return EIGH_FLOP * matrix.shape[-1] ** 3 * math.prod(matrix.shape[:-2])


_aten = torch.ops.aten
RULES: dict[Any, Callable[..., float]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
    _aten._linalg_eigh: _eigh_flop,
}
"""FLOP of operations."""
