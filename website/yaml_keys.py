"""The keys of a configuration file with their values and the comments that stand beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml


@dataclass(frozen=True)
class Key:
    """One key of a file: its dotted `name`, its `value` as it is written, and the `meaning` beside it."""

    name: str
    value: str
    meaning: str


def header(text: str) -> str:
    """The comment above the first key, in one line for each line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").removeprefix(" "))
    return "\n".join(line for line in lines if not line.startswith("@package"))


def keys(text: str) -> list[Key]:
    """Every key that holds a value, in the file's order, without `_target_` and the defaults list."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return []
    return list(_walk(root, "", text.splitlines()))


def target(text: str) -> str | None:
    """The class that the file names."""
    found = yaml.safe_load(text) or {}
    return found.get("_target_")


def _walk(node: yaml.MappingNode, above: str, lines: list[str]) -> Iterator[Key]:
    for key, value in node.value:
        if key.value in ("_target_", "defaults") and not above:
            continue
        name = above + key.value
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            said = _comment(lines, key.end_mark.line, key.end_mark.column)
            if said:
                yield Key(name, "", said)
            yield from _walk(value, f"{name}.", lines)
        else:
            yield Key(name, _written(value, lines), _comment(lines, value.end_mark.line, value.end_mark.column))


def _written(value: yaml.Node, lines: list[str]) -> str:
    first, last = value.start_mark, value.end_mark
    if first.line == last.line:
        return lines[first.line][first.column : last.column]
    plain = yaml.safe_load(yaml.serialize(value, allow_unicode=True))
    return yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000).strip()


def _comment(lines: list[str], line: int, column: int) -> str:
    """What stands behind a value, and in the comment lines below it where the first ends in a comma."""
    if line >= len(lines) or "#" not in lines[line][column:]:
        return ""
    said = lines[line][column:].split("#", 1)[1].strip()
    while said.endswith(",") and line + 1 < len(lines) and lines[line + 1].lstrip().startswith("#"):
        line += 1
        said += " " + lines[line].lstrip().lstrip("#").strip()
    return said
