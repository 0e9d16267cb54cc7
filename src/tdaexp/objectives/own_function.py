"""Measurements that a configuration names as `module:function`: imported, told apart by their source, and checked.

Importing runs the module's code, as any import does, and happens only where the user wrote such a name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.fingerprint import fingerprint

_READ: dict[str, tuple[ModuleType, str]] = {}  # modules by name, with the hash of the source that this process runs
SIGNATURE = "(logits [B, L, V], targets [B, L], weights [B, L])"


@dataclass(frozen=True)
class Imported:
    """A function of the user's own. `source`: hash of the file that it was read from."""

    name: str
    function: Callable[..., Tensor]
    source: str

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The function's numbers [B]. Errors (UserError): it fails, or gives something else than B finite numbers."""
        try:
            values = self.function(logits, targets, weights)
        except Exception as error:
            raise UserError(f"{self._where} failed: {_told(error)}") from error
        wanted = len(logits)
        if not isinstance(values, Tensor):
            raise UserError(f"{self._where} returned a {type(values).__name__}; it must return a tensor [B]")
        if values.shape != (wanted,) or not values.is_floating_point():
            given = f"{list(values.shape)} {str(values.dtype).removeprefix('torch.')}"
            raise UserError(
                f"{self._where} returned {given} for {wanted} queries; it must return one real number for each: [B]"
            )
        if logits.requires_grad and not values.requires_grad:
            raise UserError(f"{self._where} does not depend on the logits; leave out .detach(), .item() and no_grad()")
        wrong = values.detach()[~torch.isfinite(values.detach())].tolist()
        if wrong:
            raise UserError(
                f"{self._where} is {wrong[0]} for {len(wrong)} of {wanted} queries of a batch; it must be finite"
            )
        return values

    @property
    def _where(self) -> str:
        return f"method.measurement={self.name}:"


@functools.cache
def imported(name: str) -> Imported:
    """The function that `name`, `module:function`, names; read once in a process, so that its source stays true.

    Modules are looked for where Python looks, and then in the working directory. Errors (UserError): a name of another
    form, a module that cannot be imported or has no source file, no such function, or one with other arguments.
    """
    where = f"method.measurement={name}"
    module_name, _, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"{where}: must be module:function, e.g. my_measurements:margin")
    module, source = _module(module_name, where)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise unknown("function", function_name, own, f"{where}: {module_name}")
    try:
        inspect.signature(function).bind(*"abc")
    except TypeError as error:
        raise UserError(f"{where}: must take {SIGNATURE} ({error})") from error
    except ValueError:
        pass  # a function in C does not tell its arguments
    return Imported(name, function, source)


def _module(name: str, where: str) -> tuple[ModuleType, str]:
    """The module and the hash of its source. What was not imported before is compiled from the text that was hashed."""
    if name in _READ:
        return _READ[name]
    missing = f"{where}: cannot import '{name}'"
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        importlib.invalidate_caches()
        known = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if known is None else known.__spec__
        if spec is None:
            raise UserError(f"{missing}; no such module in {here} or among the installed packages")
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise UserError(f"{where}: '{name}' is no module with a source file; name the file that has the function")
        text = Path(spec.origin).read_bytes()
        if known is None:
            known = importlib.util.module_from_spec(spec)
            sys.modules[name] = known
            try:
                exec(compile(text, spec.origin, "exec"), known.__dict__)
            except BaseException:
                del sys.modules[name]
                raise
        _READ[name] = known, fingerprint(text.decode("utf-8", errors="replace"))
        return _READ[name]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{missing}: {_told(error)}") from error
    finally:
        if added:
            sys.path.remove(here)


def _told(error: Exception) -> str:
    """An error of the user's code in one line, with its place."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
