"""Identity of functions, classes and modules of somebody's own as they are in memory: what they do, wherever it stands.

A function counts with its bytecode, defaults, closure, attributes, and the globals that it names; a class with its
functions and bases; an object with its class and attributes; a module of torch with its tensors and hooks too. What an
installed package has under its own name counts by that and the version. What cannot be told is different each time:
nothing that was computed of it is used again, which is slow, and never wrong.
"""

from __future__ import annotations

import functools
import hashlib
import types
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.installed import by_name, installed
from tdaexp.runtime.meanings import meanings
from tdaexp.runtime.pickled import pickled

HELD_APART = (
    *("_parameters", "_buffers", "_modules", "training", "_is_full_backward_hook", "_is_hf_initialized"),
    *("_weight_conversions", "generation_config", "name_or_path"),
)
"""Attributes of a module of torch that are looked at otherwise, or decide no number of a pass in eval mode."""
UNSET = {"_use_kernels": False}
"""Attributes that say the same as none."""
OF_A_CLASS = (
    *("__dict__", "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__weakref__"),
    *("__doc__", "__module__", "__firstlineno__", "__static_attributes__"),
)
"""What stands in every class, and does nothing by itself."""
CACHED = functools._lru_cache_wrapper
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
USUAL = (dict, list, tuple, set, frozenset, np.ndarray, torch.Tensor, torch.nn.Parameter, functools.partial, CACHED)
"""Types that have no attribute beside what they hold."""
CODE = (types.FunctionType, types.MethodType, types.ModuleType, types.CodeType, functools.partial, CACHED)
HEAP_TYPE = 1 << 9  # a class's flag: made while a program runs, not part of the interpreter or of an extension


def behaviour(*things: Any) -> str:
    """Digest (16 hex digits) of what these do."""
    return _digest(lambda: _Walk().of(list(things)))


def structure(model: torch.nn.Module) -> str:
    """Digest (16 hex digits) of what a model is beside its tensors: classes, parts, attributes, hooks, patches."""
    return _digest(lambda: _Walk().structure(model))


def tensors(model: torch.nn.Module) -> dict[str, Any]:
    """Digest of each parameter and buffer, those that are not saved included; one in two places counts as the same."""
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    return {
        name: _tensor(one) if first.setdefault(id(one), name) == name else ["the same as", first[id(one)]]
        for name, one in every
    }


def _tensor(value: torch.Tensor) -> Any:
    if value.is_meta or value.is_quantized or value.layout is not torch.strided:
        return _untold()
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    data = plain.view(torch.uint8) if plain.numel() else plain
    return [str(value.dtype), list(value.shape), hashlib.blake2b(data.numpy().data, digest_size=16).hexdigest()]


def _digest(told: Callable[[], Any]) -> str:
    try:
        return fingerprint(told())
    except Exception:  # things within things, deeper than can be followed; or what fails when it is asked what it holds
        return _untold()


def _untold() -> str:
    return uuid.uuid4().hex


class _Walk:
    """Turns things into plain data; what was met before is named by its number."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no number is used twice
        self.kinds: list[tuple[Any, Callable[[Any], Any]]] = [
            (torch.Tensor, _tensor),
            (np.ndarray, self._array),
            (defaultdict, lambda one: [self.of(one.default_factory), self._pairs(one)]),
            (dict, self._pairs),
            ((list, tuple), self._each),
            ((set, frozenset), lambda one: sorted(map(repr, self._each(one)))),
            (types.FunctionType, self._function),
            (types.MethodType, lambda one: self._each([one.__func__, one.__self__])),
            (functools.partial, lambda one: self._each([one.func, one.args, one.keywords, vars(one)])),
            (CACHED, lambda one: self._each([one.__wrapped__, one.cache_parameters()])),
            (types.CodeType, self._code),
            (types.ModuleType, lambda one: [one.__name__, installed(one.__name__) or _untold()]),
            (type, self._class),
            ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), self._builtin),
            (torch.nn.Module, lambda one: [self.structure(one), tensors(one)]),
        ]

    def of(self, value: Any) -> Any:
        """Plain data that is the same for what does the same."""
        if type(value) in PLAIN:
            return repr(value)
        if isinstance(value, np.generic):
            return [type(value).__name__, repr(value)]
        if id(value) in self.met:
            return ["met before", self.met[id(value)]]
        self._meet(value)
        for kind, told in self.kinds:
            if isinstance(value, kind):
                found = [type(value).__name__, told(value)]
                beside = isinstance(value, USUAL) and type(value) not in USUAL
                return [*found, self.of(type(value)), self.of(getattr(value, "__dict__", None))] if beside else found
        return self._object(value)

    def structure(self, model: torch.nn.Module) -> list[Any]:
        """Of the model and all its parts: class, attributes, and which parts are where."""
        new = [one for one in model.modules() if one is model or id(one) not in self.met]
        for one in new:  # before any attribute, which may refer to one of them
            self._meet(one)
        return [[self.of(type(one)), self._patches(type(one)), self.attributes(one), self._parts(one)] for one in new]

    def attributes(self, module: torch.nn.Module) -> Any:
        """Those of one module of torch, without its tensors and parts."""
        own = {key: value for key, value in sorted(vars(module).items()) if key not in HELD_APART}
        hooks = {key: value for key, value in own.items() if "_hooks" in key and isinstance(value, dict)}
        numbers = sorted({number for one in hooks.values() for number in one})  # counted up over a whole program
        told = {key: [[numbers.index(k), self.of(hook)] for k, hook in one.items()] for key, one in hooks.items()}
        rest = {key: value for key, value in own.items() if key not in hooks}
        set_ones = {key: value for key, value in rest.items() if key not in UNSET or value is not UNSET[key]}
        return {**told, **{key: self.of(value) for key, value in set_ones.items()}}

    def _parts(self, module: torch.nn.Module) -> list[Any]:
        parts = module._modules.items()
        return [[name, None if one is None else self.met[id(one)]] for name, one in parts]

    def _patches(self, cls: type) -> list[Any]:
        """Functions of somebody's own that were put into an installed class."""
        every = [(base, key, one) for base in cls.__mro__ for key, one in vars(base).items() if by_name(base)]
        own = [(base, key, one) for base, key, one in every if isinstance(one, types.FunctionType) and not _known(one)]
        return [[base.__qualname__, key, self.of(one)] for base, key, one in own]

    def _meet(self, value: Any) -> None:
        if id(value) not in self.met:
            self.met[id(value)] = len(self.met)
            self.kept.append(value)

    def _each(self, values: Iterable[Any]) -> list[Any]:
        return [self.of(one) for one in values]

    def _pairs(self, values: dict[Any, Any]) -> list[Any]:
        return [[self.of(key), self.of(inner)] for key, inner in values.items()]

    def _array(self, values: np.ndarray) -> Any:
        if values.dtype.hasobject:
            return [list(values.shape), self._each(values.ravel().tolist())]
        return fingerprint(np.asarray(values))

    def _builtin(self, value: Any) -> Any:
        """Of a method of an object with the object."""
        owner = getattr(value, "__self__", None)
        return [value.__qualname__, None if isinstance(owner, type) else self.of(owner)]

    def _function(self, function: types.FunctionType) -> Any:
        known = by_name(function)
        if known is not None:
            return known
        parts = self._each([function.__code__, function.__defaults__, function.__kwdefaults__])
        told = {
            name: [one.__name__, installed(one.__name__)] if isinstance(one, types.ModuleType) else self.of(one)
            for name, one in meanings(function).items()
        }
        return [*parts, told, self.of(vars(function))]

    def _code(self, code: types.CodeType) -> Any:
        arguments = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        text = [code.co_code.hex(), code.co_exceptiontable.hex(), arguments]
        return [*text, self._each(code.co_consts), list(code.co_names), list(code.co_varnames), list(code.co_freevars)]

    def _class(self, cls: type) -> Any:
        known = by_name(cls)
        if known is not None or not cls.__flags__ & HEAP_TYPE:
            return known or [cls.__module__, cls.__qualname__]
        own = {key: one for key, one in vars(cls).items() if key not in OF_A_CLASS and not key.startswith("_abc")}
        return [cls.__qualname__, self._each(cls.__bases__), {key: self._member(one) for key, one in own.items()}]

    def _member(self, value: Any) -> Any:
        """What stands in a class: its functions behind their wrappers."""
        if isinstance(value, property):
            return self._each([value.fget, value.fset])
        if isinstance(value, functools.cached_property):
            return self.of(value.func)
        return [type(value).__name__, self.of(value.__func__)] if hasattr(value, "__func__") else self.of(value)

    def _object(self, value: Any) -> Any:
        cls = type(value)
        own = installed(cls.__module__) is None
        whole = own and all(base is object or base.__flags__ & HEAP_TYPE for base in cls.__mro__)
        try:
            if whole:
                slots = [name for base in cls.__mro__ for name in vars(base) if _is_slot(vars(base)[name])]
                inside = {name: getattr(value, name) for name in slots if hasattr(value, name)}
                return self._each([cls, getattr(value, "__dict__", None), inside])
            return [self.of(cls), pickled(value, self._apart)]
        except Exception:  # whatever stands in the way of telling it
            return _untold()

    def _apart(self, part: Any) -> str | None:
        """What stands for a part of an object that is pickled, where it is not to be pickled by name."""
        if isinstance(part, type):
            told = bool(part.__flags__ & HEAP_TYPE) and by_name(part) is None
        else:
            told = isinstance(part, (*CODE, torch.Tensor, torch.nn.Module)) or installed(type(part).__module__) is None
        return fingerprint(self.of(part)) if told else None


def _known(function: types.FunctionType) -> bool:
    """Whether an installed package wrote a function."""
    return installed(function.__globals__.get("__name__")) is not None


def _is_slot(value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType)
