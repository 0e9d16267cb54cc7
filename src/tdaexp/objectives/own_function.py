"""Measurements that a configuration names as `module:function`: imported, told apart by their source, and checked.

Importing runs the module's code, as any import does, and happens only where the user wrote such a name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.own_module import own_module, told

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
            raise UserError(f"{self._where} failed: {told(error)}") from error
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
    module, source = own_module(module_name, where)
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
