"""What comes from an installed package: its modules, and what can be found in them under its own name."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import types
from typing import Any

from tdaexp.runtime.fingerprint import version

FOLDERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def installed(name: str | None) -> str | None:
    """Name and version of the installed package that a module belongs to; None for one of somebody's own."""
    if name is None or name == "__main__":
        return None
    top = name.partition(".")[0]
    package, file = sys.modules.get(top), getattr(sys.modules.get(name), "__file__", None)
    if name in sys.modules and (file is None or not os.path.isabs(file)):  # one that was compiled into its package
        file = getattr(package, "__file__", None)
    if top in sys.stdlib_module_names or str(file).startswith(FOLDERS):
        stated = getattr(package, "__version__", None)
        return f"{top} {_released(top) if stated is None else stated}"
    return None


@functools.cache
def _released(package: str) -> str:
    """The version of a package that does not say it itself; those of Python have none."""
    return "" if package in sys.stdlib_module_names else version(package) or ""


def by_name(value: Any) -> list[str] | None:
    """Package, module and name of a function or class that an installed package has under that name; else None.

    A wrapper takes over the name of what it wraps, so that a function must have been written in such a package too.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    package = installed(module)
    if package is None or name is None:
        return None
    if isinstance(value, types.FunctionType) and installed(value.__globals__.get("__name__")) is None:
        return None
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    same = getattr(found, "__func__", found) is value
    return [package, str(module), name] if same else None
