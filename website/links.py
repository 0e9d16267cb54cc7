"""Links between pages that are moved on their way to the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath

_LINK = re.compile(r"(\]\()([^)\s]+)(\))|(\bsrc=\")([^\"]+)(\")")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def changed(text: str, change: Callable[[str], str]) -> str:
    """The Markdown `text` with `change` made to each relative link in it, outside of code blocks."""

    def one(match: re.Match[str]) -> str:
        before, link, after = match.group(1, 2, 3) if match.group(1) else match.group(4, 5, 6)
        kept = re.match(r"[a-z]+:|#|/", link)
        return match.group(0) if kept else f"{before}{change(link)}{after}"

    pieces = _FENCE.split(text)
    return "".join(piece if piece.startswith("```") else _LINK.sub(one, piece) for piece in pieces)


def moved(text: str, before: str, after: str) -> str:
    """The text of the page `before` for its place `after`, both paths under one root: links lead where they led."""

    def change(link: str) -> str:
        path, hash_, anchor = link.partition("#")
        there = os.path.normpath(PurePosixPath(before).parent / path)
        return os.path.relpath(there, PurePosixPath(after).parent) + hash_ + anchor

    return changed(text, change)
