"""The page on which a question is typed, and its most helpful and most harmful training examples are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdaexp.report.answers import Sides
from tdaexp.report.page import page


@dataclass(frozen=True)
class Asked:
    """What the page is about (`run`, `method`, `model`, number of `examples`, `k` of them on a side), what was typed,
    and what came of it: an `error`, or the answer's `sides`, the `seconds` that it took, and how it was searched for
    (None: exactly).
    """

    run: str
    method: str
    model: str
    examples: int
    k: int
    prompt: str
    completion: str
    error: str = ""
    sides: Sides = field(default_factory=dict)
    seconds: float = 0.0
    search: str | None = None


def asked_page(asked: Asked) -> str:
    """The page as HTML, without a script and without anything from elsewhere."""
    signs = {"helpful": 1.0, "harmful": -1.0}
    return page("asked.html", {}, asked=asked, signs=signs)
