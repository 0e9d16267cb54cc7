"""Identity of functions, classes and modules of somebody's own as they are in memory: what they do, wherever it stands.

A function counts with its bytecode, defaults, closure, and the globals that it names; a class with its functions and
bases; an object with its class and attributes; a module of torch with its tensors and hooks too. What comes from an
installed package counts by its name and version. What cannot be told is different each time: nothing that was computed
of it is used again, which is slow, and never wrong.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
import sysconfig
import types
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from tdaexp.runtime.fingerprint import fingerprint

INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
HELD_APART = (
    *("_parameters", "_buffers", "_modules", "training", "_is_full_backward_hook", "_is_hf_initialized"),
    *("_weight_conversions", "generation_config", "name_or_path"),
)
"""Attributes of a module of torch that are looked at otherwise, or decide no number of a pass in eval mode."""


def behaviour(*things: Any) -> str:
    """Digest (16 hex digits) of what these do."""
    return fingerprint(_Walk().of(list(things)))


def structure(model: torch.nn.Module) -> Any:
    """What a model computes beside its tensors, as plain data: classes, plain attributes, hooks, replaced functions."""
    walk = _Walk()
    return {name: [walk.of(type(one)), walk.attributes(one)] for name, one in model.named_modules()}


def tensors(model: torch.nn.Module) -> dict[str, Any]:
    """Digest of each parameter and buffer, those that are not saved included; a tensor in two places counts in each."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: _tensor(one) for name, one in named}


def _tensor(value: torch.Tensor) -> Any:
    plain = value.detach().cpu().contiguous().flatten()
    data = plain.view(torch.uint8) if plain.numel() else plain
    return [str(value.dtype), list(value.shape), hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()]


def _installed(name: str | None) -> str | None:
    """Name and version of the installed package that a module belongs to; None for one of somebody's own."""
    if name is None or name == "__main__":
        return None
    module, top = sys.modules.get(name), name.partition(".")[0]
    file = getattr(module, "__file__", None)
    if top in sys.stdlib_module_names or (module is not None and file is None) or str(file).startswith(INSTALLED):
        return f"{top} {getattr(sys.modules.get(top), '__version__', '')}"
    return None


class _Walk:
    """Turns things into plain data; what was met before is named by its number."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no number is used twice

    def of(self, value: Any) -> Any:
        """Plain data that is the same for what does the same."""
        if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device)):
            return repr(value)
        if isinstance(value, (bytes, np.generic)):
            return [type(value).__name__, repr(value)]
        if id(value) in self.met:
            return ["met before", self.met[id(value)]]
        self.met[id(value)] = len(self.met)
        self.kept.append(value)
        kinds: list[tuple[Any, Callable[[Any], Any]]] = [
            (torch.Tensor, _tensor),
            (np.ndarray, lambda one: one if one.dtype != object else self._each(one.ravel())),
            (dict, lambda one: [[self.of(key), self.of(inner)] for key, inner in one.items()]),
            ((list, tuple), self._each),
            ((set, frozenset), lambda one: sorted(map(repr, self._each(one)))),
            (types.FunctionType, self._function),
            (types.MethodType, lambda one: self._each([one.__func__, one.__self__])),
            (functools.partial, lambda one: self._each([one.func, one.args, one.keywords])),
            (types.CodeType, self._code),
            (types.ModuleType, lambda one: [one.__name__, _installed(one.__name__)]),
            (type, self._class),
            ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), repr),
            (torch.nn.Module, lambda one: [structure(one), tensors(one)]),
        ]
        for kind, told in kinds:
            if isinstance(value, kind):
                return [type(value).__name__, told(value)]
        return self._object(value)

    def attributes(self, module: torch.nn.Module) -> Any:
        """Those of one module of torch, without its tensors and parts."""
        own = {key: value for key, value in vars(module).items() if key not in HELD_APART}
        return {key: self.of(value) for key, value in own.items() if value or not key.startswith("_")}

    def _each(self, values: Iterable[Any]) -> list[Any]:
        return [self.of(one) for one in values]

    def _function(self, function: types.FunctionType) -> Any:
        package = _installed(function.__module__)
        if package is not None:
            return [package, function.__module__, function.__qualname__]
        inside = [_content(cell) for cell in function.__closure__ or ()]
        found = [function.__code__, function.__defaults__, function.__kwdefaults__, inside]
        return [*self._each(found), self._globals(function.__code__, function.__globals__)]

    def _globals(self, code: types.CodeType, known: dict[str, Any]) -> Any:
        """What the names in a function mean; of a module of somebody's own those of its attributes that are named."""
        names = _names(code)
        found = {name: self.of(known[name]) for name in names if name in known}
        modules = [known[name] for name in names if isinstance(known.get(name), types.ModuleType)]
        for module in (one for one in modules if _installed(one.__name__) is None):
            found |= {
                f"{module.__name__}.{name}": self.of(getattr(module, name)) for name in names if name in vars(module)
            }
        return found

    def _code(self, code: types.CodeType) -> Any:
        return [code.co_code.hex(), self._each(code.co_consts), list(code.co_names), list(code.co_varnames)]

    def _class(self, cls: type) -> Any:
        package = _installed(cls.__module__)
        if package is not None:
            return [package, cls.__module__, cls.__qualname__]
        skipped = (
            "__dict__",
            "__annotations__",
            "__dataclass_fields__",
            "__dataclass_params__",
            "__match_args__",
            "__weakref__",
            "__doc__",
            "__module__",
            "__firstlineno__",
            "__static_attributes__",
        )
        own = {key: value for key, value in vars(cls).items() if key not in skipped and not key.startswith("_abc")}
        return [cls.__qualname__, self._each(cls.__bases__), {key: self._member(one) for key, one in own.items()}]

    def _member(self, value: Any) -> Any:
        """What stands in a class: its functions behind their wrappers."""
        if isinstance(value, property):
            return self._each([value.fget, value.fset])
        return self.of(getattr(value, "__func__", value))

    def _object(self, value: Any) -> Any:
        cls = type(value)
        if _installed(cls.__module__) is None and hasattr(value, "__dict__"):
            return self._each([cls, vars(value)])
        try:
            return [self.of(cls), hashlib.blake2b(pickle.dumps(value), digest_size=16).hexdigest()]
        except Exception:  # whatever stands in the way of telling it
            return uuid.uuid4().hex


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _names(code: types.CodeType) -> list[str]:
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})
