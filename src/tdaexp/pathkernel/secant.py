"""The secant rule: a derivative along one step that is complete up to rounding, on networks with kinks too.

Each operation is integrated by itself, along the straight line between its inputs at θ_s and at θ_{s+1}; the chain rule
joins these averages, so that ⟨∇̄f, θ_{s+1} − θ_s⟩ = f(θ_{s+1}) − f(θ_s), and ∇̄f → ∇f for short steps (second order
where f is smooth). A product of two is exact at the middle, a ReLU is open for the share of the line that it spends
above zero, a maximum goes over from one entry to another where their lines cross: the rescale rule of DeepLIFT
(Shrikumar et al. 2017), along parameters instead of inputs. Smooth operations take Gauss–Legendre nodes of their own,
no pass through the network. ∇̄f is not ∇f's average over one path of parameters: every operation goes its own straight
line. Both tend to the same for short steps.

Cost: the network at both ends, and one derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from tdaexp.pathkernel.parameters import Batch, Function, Parameters
from tdaexp.pathkernel.quadrature import nodes
from tdaexp.runtime.errors import UserError

Triple = tuple[Tensor, Tensor, Tensor]
"""Values at both ends, and a tensor that is zero and whose derivative is the average one."""

ATTRIBUTES = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "is_floating_point"}
PRODUCTS = {
    "linear", "conv1d", "conv2d", "conv3d", "matmul", "bmm", "einsum", "mul", "div", "add", "sub", "rsub", "neg", "sum",
    "mean", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "embedding", "flatten", "unflatten", "view", "reshape",
    "transpose", "permute", "movedim", "squeeze", "unsqueeze", "expand", "contiguous", "getitem", "gather", "cat",
    "stack", "mT",
}  # fmt: skip
"""Linear in each of up to two arguments that change: one node is exact."""
SMOOTH = {
    "gelu", "tanh", "sigmoid", "silu", "exp", "softmax", "log_softmax", "logsumexp", "layer_norm", "group_norm",
    "cross_entropy",
}  # fmt: skip
INNER_NODES, OUTPUT_NODES = 8, 16


def secant(f: Function, start: Parameters, end: Parameters) -> Function:
    """A function of θ whose derivative, wherever it is taken, is the secant derivative of f from `start` to `end`.

    Its value means nothing. Errors (UserError): an operation without a rule.
    """

    def surrogate(parameters: Parameters, batch: Batch) -> Tensor:
        return _follow(_Secant(), f, start, end, parameters, batch)

    return surrogate


def smooth_operation(f: Function, parameters: Parameters, batch: Batch) -> str | None:
    """The first operation inside f that is neither a product nor a kink, if there is one.

    Errors (UserError): an operation without a rule.
    """
    mode = _Secant()
    vjp(lambda values: _follow(mode, f, parameters, parameters, values, batch), dict(parameters))
    return mode.smooth


class NoRule(UserError):
    """An operation that the secant rule cannot take."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"method.quadrature.rule=secant: {reason}; choose gauss, midpoint, trapezoid or left")


def read_out(read: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    """read(logits, targets); the secant rule takes all of it as one operation on the logits."""
    if has_torch_function_unary(logits):
        found: Tensor = handle_torch_function(read_out, (logits,), read, logits, targets)
        return found
    return read(logits, targets)


def _follow(
    mode: _Secant, f: Function, start: Parameters, end: Parameters, parameters: Parameters, batch: Batch
) -> Tensor:
    moving = {name: mode.keep(start[name], end[name], _zero(value)) for name, value in parameters.items()}
    with mode:
        found = f(moving, batch)
    if found not in mode.ends:
        raise NoRule("the output does not come from the parameters by operations of torch")
    return found


class _Secant(TorchFunctionMode):
    """Runs every operation at both ends and once more for its average derivative.

    What the program passes on is the third of a triple; `ends` knows the other two for as long as it lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = WeakIdKeyDictionary()
        self.smooth: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        if name in ATTRIBUTES or not any(self._moves(value) for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if name in KINKS and self._moves(next(iter(args), None)):
            moving, *rest = args
            return self.keep(*KINKS[name](*self.ends[moving], moving, *rest, **kwargs))
        if name in PRODUCTS and self._is_product(name, args, kwargs):
            return self._along(func, 1, args, kwargs)
        if name in SMOOTH:
            self.smooth = self.smooth or name
            return self._along(func, INNER_NODES, args, kwargs)
        if func is read_out:
            return self._along(func, OUTPUT_NODES, args, kwargs)
        raise NoRule(f"no rule for this use of the operation '{name}'")

    def keep(self, start: Tensor, end: Tensor, moving: Tensor) -> Tensor:
        """Remember the ends of a tensor."""
        self.ends[moving] = (start, end)
        return moving

    def _moves(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self.ends

    def _along(self, func: Any, count: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        def run(choose: Callable[[Tensor], Tensor]) -> Tensor:
            chosen = tree_map(lambda value: choose(value) if self._moves(value) else value, (args, dict(kwargs)))
            found: Tensor = func(*chosen[0], **chosen[1])
            return found

        def near(position: float) -> Callable[[Tensor], Tensor]:
            def point(value: Tensor) -> Tensor:
                start, end = self.ends[value]
                between: Tensor = (1 - position) * start + position * end + value
                return between

            return point

        positions, weights = nodes("gauss", count)
        pieces = (float(w) * run(near(float(t))) for t, w in zip(positions, weights, strict=True))
        return self.keep(run(lambda x: self.ends[x][0]), run(lambda x: self.ends[x][1]), _zero(_total(pieces)))

    def _is_product(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether what changes enters as PRODUCTS says."""
        changing = sum(self._moves(value) for value in tree_leaves((args, dict(kwargs))))
        if name == "batch_norm":
            return not kwargs.get("training", args[5] if len(args) > 5 else False)  # its averages are constants
        if name == "div":
            return self._moves(args[0]) and changing == 1 and "rounding_mode" not in kwargs
        return changing <= 2 if name == "einsum" else True


def _name(func: Any) -> str:
    """An operation's name, the same for functions, methods and attributes."""
    found: str = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    return found.strip("_") if found.startswith("__") else found


def _total(pieces: Iterable[Tensor]) -> Tensor:
    first, *others = pieces
    return sum(others, first)


def _zero(value: Tensor) -> Tensor:
    """Zero, with the derivative of `value`."""
    return value - value.detach()


def _relu(start: Tensor, end: Tensor, moving: Tensor, inplace: bool = False) -> Triple:
    """Share of the line that lies above zero; 0 where all of it is zero, as torch has it."""
    if inplace:
        raise NoRule("no rule for 'relu' in place")
    above = (start.relu(), end.relu())
    size = start.abs() + end.abs()
    return *above, torch.where(size > 0, (above[0] + above[1]) / size, 0.0) * moving


def _max_pool2d(start: Tensor, end: Tensor, moving: Tensor, *args: Any, **kwargs: Any) -> Triple:
    settings = {**kwargs, "return_indices": True}
    (first, at_first), (last, at_last) = (functional.max_pool2d(x, *args, **settings) for x in (start, end))
    places = (at_first.flatten(-2), at_last.flatten(-2))
    return first, last, _highest(start.flatten(-2), end.flatten(-2), moving.flatten(-2), *places).view_as(first)


def _amax(start: Tensor, end: Tensor, moving: Tensor, dim: Any = (), keepdim: bool = False) -> Triple:
    dims = (dim,) if isinstance(dim, int) else tuple(dim) or tuple(range(start.ndim))
    a, b, line = (x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims)) for x in (start, end, moving))
    found = _highest(a, b, line, a.argmax(-1, keepdim=True), b.argmax(-1, keepdim=True))
    first = start.amax(dims, keepdim)
    return first, end.amax(dims, keepdim), found.view_as(first)


def _highest(start: Tensor, end: Tensor, moving: Tensor, at_first: Tensor, at_last: Tensor) -> Tensor:
    """Average derivative of a maximum over the last axis, whose places at both ends are given.

    From one entry to the other where their lines cross, as if no third were above them there.
    """
    lead = start.gather(-1, at_first) - start.gather(-1, at_last)
    gain = end.gather(-1, at_last) - end.gather(-1, at_first)
    share = torch.where(lead + gain > 0, gain / (lead + gain), 0.0)
    return (1 - share) * moving.gather(-1, at_first) + share * moving.gather(-1, at_last)


KINKS: Mapping[str, Callable[..., Triple]] = {"relu": _relu, "max_pool2d": _max_pool2d, "amax": _amax}
