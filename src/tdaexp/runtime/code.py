"""Identity of the code that computes: a digest of the modules of ours that a piece of work reaches by its imports.

What is kept in the cache is named after it, so that an edit of a function that decides numbers gives new ones, and an
edit of a plot, a comment or a docstring gives none. Nothing is imported: sources are parsed, and known again by their
times (`digests`). Versions of the packages that numbers come from count too.

A module that is edited while a process runs is refused: what the process would keep might be either version's.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdaexp.runtime import digests
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint, version
from tdaexp.runtime.own_module import source_of

PACKAGE = "tdaexp"
ROOT = Path(__file__).resolve().parents[1]
_FOUND = {file: file.stat().st_mtime_ns for file in ROOT.rglob("*.py")}  # when this process began
SILENT = (
    *(
        "tdaexp",
        "tdaexp.app",
        "tdaexp.report",
        "tdaexp.planning",
        "tdaexp.trust",
        "tdaexp.app.stages",
        "tdaexp.app.sweep",
    ),
    *(
        f"tdaexp.runtime.{name}"
        for name in ("async_writer", "cache", "clock", "code", "costs", "digests", "errors", "files", "launch")
    ),
    *(f"tdaexp.runtime.{name}" for name in ("heartbeat", "progress", "quiet", "seal", "stop", "watcher")),
    *(f"tdaexp.runtime.{name}" for name in ("fake_device", "live_bytes", "rehearsal", "rehearsed_store")),
)
"""Modules, with all below them, that tell, keep or start what others compute, and decide no number."""
PEERS = ("torch", "transformers", "tokenizers", "numpy")
"""Packages whose versions decide numbers."""


Work = Callable[..., Any] | type | str
"""What computes: a function, a class with its bases, or a module by its name."""


def code_identity(*work: Work) -> str:
    """Digest (16 hex digits) of the modules that these functions, classes or modules reach, theirs included.

    Modules outside of this package count alone, without what they import; what was typed at a prompt or in a notebook
    counts with what it does (`behaviour`).
    """
    found, typed = _identity(tuple(modules_of(*work))), [one for each in work for one in _typed(each)]
    if not typed:
        return found
    from tdaexp.runtime.behaviour import behaviour

    return fingerprint(found, behaviour(*typed))


def modules_of(*work: Work) -> list[str]:
    """The modules in which these are written, in order."""
    return sorted({name for one in work for name in _modules(one)})


def reached(*modules: str) -> list[str]:
    """Names of the modules of ours that these reach by their imports, theirs included and the silent ones not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and not _silent(name):
            found.add(name)
            waiting += _imports(name)
    return sorted(found)


@functools.cache
def _identity(modules: tuple[str, ...]) -> str:
    found = fingerprint([[name, _source(name)[0]] for name in reached(*modules)], _versions())
    digests.write()
    return found


@functools.cache
def _versions() -> list[str]:
    return [version(name) or "" for name in PEERS]


def _modules(work: Work) -> list[str]:
    if isinstance(work, str):
        return [work]
    if isinstance(work, type):
        return [one.__module__ for one in work.__mro__ if _file(one.__module__) is not None]
    return [work.__module__]


def _typed(work: Work) -> list[Any]:
    """Of a function, or of a class and its bases, what is in no file."""
    if isinstance(work, str):
        return []
    every = work.__mro__ if isinstance(work, type) else [work]
    return [one for one in every if _file(one.__module__) is None and one.__module__.split(".")[0] in ("__main__", "")]


def _silent(name: str) -> bool:
    return any(name == one or (one != PACKAGE and name.startswith(f"{one}.")) for one in SILENT)


def _imports(name: str) -> list[str]:
    """Modules of ours that a module imports, wherever in it, but for type checkers."""
    found = []
    for module, member in _source(name)[1]:
        inner = f"{module}.{member}"
        found.append(inner if member and _own_file(inner) else module)
    return found


def _source(name: str) -> tuple[str, list[list[str]]]:
    """Digest of a module's code without its docstrings and comments, and (module, name) of its imports of ours."""
    file, read = _file(name), source_of(name)
    if read is not None:
        return read, []
    if file is None:
        return "", []
    if _FOUND.get(file, file.stat().st_mtime_ns) != file.stat().st_mtime_ns:
        raise UserError(f"{file}: was edited while this run was at work, which may have begun with either; run again")
    digest, imports = digests.remembered(file, f"code{sys.version_info.minor}", _read)
    return digest, imports


def _read(file: Path) -> list[Any]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # not what was imported: its bytes stand for it
        return [digests.digest(file), []]
    found = _Reader()
    found.visit(tree)
    return [hashlib.blake2b(ast.dump(tree).encode(), digest_size=8).hexdigest(), sorted(found.imports)]


class _Reader(ast.NodeVisitor):
    """Takes docstrings and blocks for type checkers out of a tree, and notes which modules of ours it imports."""

    def __init__(self) -> None:
        self.imports: set[tuple[str, str]] = set()

    def generic_visit(self, node: ast.AST) -> None:
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _said(one) and not _for_types(one)]  # type: ignore[attr-defined]
        super().generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.imports |= {(one.name, "") for one in node.names if one.name.split(".")[0] == PACKAGE}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.split(".")[0] == PACKAGE:
            self.imports |= {(node.module, one.name) for one in node.names}


def _said(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@functools.cache
def _file(name: str) -> Path | None:
    """The source of a module: of ours by its name, of another where it is loaded."""
    if name.split(".")[0] == PACKAGE:
        return _own_file(name)
    if name.split(".")[0] in sys.stdlib_module_names:
        return None
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


@functools.cache
def _own_file(name: str) -> Path | None:
    stem = ROOT.joinpath(*name.split(".")[1:])
    return next((one for one in (stem.with_suffix(".py"), stem / "__init__.py") if one.is_file()), None)
