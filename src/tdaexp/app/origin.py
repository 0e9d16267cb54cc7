"""Where a key of a composed configuration was set, and the wording of messages about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Origin = Callable[[tuple[str, ...]], str]


@dataclass(frozen=True)
class OriginOf:
    """Where keys were set: `options` (path, text) and `files` (file, package, content), the last wins."""

    options: list[tuple[tuple[str, ...], str]]
    files: list[tuple[Path, tuple[str, ...], Any]]

    def __call__(self, path: tuple[str, ...]) -> str:
        """Name the last option or file that sets the key, its children or one of its parents."""
        for key, text in reversed(self.options):
            if key == path[: len(key)] or (path and path == key[: len(path)]):
                return self._swept(text) or f"option '{text}'"
        for depth in range(len(path), 0, -1):
            for file, package, content in reversed(self.files):
                if _holds(content, package, path[:depth]):
                    return shown(file)
        return shown(self.files[0][0]) if self.files else "the configuration"

    def _swept(self, text: str) -> str | None:
        """Name the file among whose sweeper parameters the option is one value of many."""
        key, _, value = text.partition("=")
        for file, package, content in reversed(self.files):
            path = ("hydra", "sweeper", "params", key)
            if package == () and _holds(content, package, path):
                values = str(content["hydra"]["sweeper"]["params"][key]).split(",")
                return f"{shown(file)}: '{text}'" if value in values else None
        return None


def _holds(content: Any, package: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether a file's content, placed at `package`, sets the key at `path`."""
    if package[: len(path)] == path:
        return True
    if path[: len(package)] != package:
        return False
    for key in path[len(package) :]:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def shown(path: Path) -> str:
    """A path relative to the working folder where it lies in it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def one_line(error: BaseException) -> str:
    """A message without line breaks and without OmegaConf's bookkeeping."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not re.match(r"(full_key|(object|reference)_type)", line))
