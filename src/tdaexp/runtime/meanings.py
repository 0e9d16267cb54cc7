"""What the names in a function mean: its closure, its globals, and modules that it imports itself."""

from __future__ import annotations

import sys
import types
from typing import Any

from tdaexp.runtime.installed import installed


def meanings(function: types.FunctionType) -> dict[str, Any]:
    """Name to what it stands for, of those that are bound; of a module of somebody's own its attributes too that are
    named, as `module.name`.
    """
    code = function.__code__
    inside = [_content(cell) for cell in function.__closure__ or ()]
    known = {**function.__globals__, **dict(zip(code.co_freevars, inside, strict=True))}
    names = sorted({*_names(code), *code.co_freevars})
    found = {name: sys.modules[name] for name in names if name in sys.modules}  # what a function itself imports
    found |= {name: known[name] for name in names if name in known}
    waiting = [one for one in found.values() if isinstance(one, types.ModuleType)]
    seen: set[int] = set()
    while waiting:
        module = waiting.pop()
        if installed(module.__name__) is None and id(module) not in seen:
            seen.add(id(module))
            inner = {name: vars(module)[name] for name in names if name in vars(module)}
            found |= {f"{module.__name__}.{name}": one for name, one in inner.items()}
            waiting += [one for one in inner.values() if isinstance(one, types.ModuleType)]
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _names(code: types.CodeType) -> list[str]:
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return sorted({*code.co_names, *inner})
