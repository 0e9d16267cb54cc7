"""Python modules of the user's own, imported where a configuration names one with a colon, `module:name`.

Importing runs the module's code, as any import does. A module is read once in a process, and what it does is told apart
by the text that was read then (`source_of`): an edit counts from the next process on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

_PLACES: list[Path] = []
_READ: dict[str, tuple[ModuleType, str]] = {}  # modules by name, with the hash of the source that this process runs


def look_in(folders: Sequence[Path]) -> None:
    """Where this process looks for modules from now on, beside where Python looks and the working directory."""
    _PLACES[:] = folders


def own_module(name: str, where: str) -> tuple[ModuleType, str]:
    """The module and the hash of its source. What was not imported before is compiled from the text that was hashed.

    Modules are looked for where Python looks, then in the folders of `look_in` and in the working directory. `where`
    begins messages. Errors (UserError): it is not found, has no source file, or fails.
    """
    if name in _READ:
        return _READ[name]
    missing, before = f"{where}: cannot import '{name}'", sys.path[:]
    here = [*dict.fromkeys([*(str(folder.absolute()) for folder in _PLACES), os.getcwd()])]
    sys.path += [folder for folder in here if folder not in before]
    try:
        importlib.invalidate_caches()
        known = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if known is None else known.__spec__
        if spec is None:
            raise UserError(f"{missing}; no such module in {', '.join(here)} or among the installed packages")
        if spec.origin is None or not spec.origin.endswith(".py"):
            raise UserError(f"{where}: '{name}' is no module with a source file; name the file that has it")
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
        raise UserError(f"{missing}: {told(error)}") from error
    finally:
        sys.path[:] = before


def source_of(name: str) -> str | None:
    """The hash of a module's source as it was read here; None for one that was not."""
    return _READ[name][1] if name in _READ else None


def told(error: Exception) -> str:
    """An error of the user's code in one line, with its place."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
