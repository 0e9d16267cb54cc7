"""What a page says of trust: of one store a card for each check, of several a row each with the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tdaexp.trust.check import ABSENT, BAD, GOOD, OPEN, Check

LISTED = 40  # questions whose own numbers are listed, the lowest first


@dataclass(frozen=True)
class Card:
    """A check that was made: `how`, with its threshold; further numbers in `lines`, and how many `more` there are."""

    title: str
    value: str
    how: str
    check: Check
    lines: list[tuple[str, str]]
    more: int


@dataclass(frozen=True)
class Panel:
    """`summary` in a line; of one store `cards`, and what was not measured (title and reason); of several `columns` and
    `rows`: a label, and for each column verdict and value, both "" where there is none.
    """

    summary: str
    cards: list[Card]
    left: list[tuple[str, str]]
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


def panel(trust: Mapping[str, Sequence[Check]]) -> Panel | None:
    """The panel of the stores by label; None where no check of any was made."""
    if not any(trust.values()):
        return None
    every = [one for checks in trust.values() for one in checks]
    if len(trust) > 1:
        names = list(dict.fromkeys(one.name for one in every if one.verdict != ABSENT))
        rows = [(label, [_cell(name, checks) for name in names]) for label, checks in trust.items()]
        return Panel(_summary(every), [], [], [_title(name) for name in names], rows)
    cards = [_card(one) for one in every if one.verdict != ABSENT]
    left = [(_title(one.name), one.says) for one in every if one.verdict == ABSENT]
    return Panel(_summary(every), cards, left, [], [])


def _card(one: Check) -> Card:
    lines = sorted(one.details.items(), key=lambda line: line[1])[:LISTED]
    told = [(name, _number(value)) for name, value in lines]
    how = " ".join(f"{text[:1].upper()}{text[1:]}." for text in (one.how, one.threshold))
    return Card(_title(one.name), _number(one.value), how, one, told, len(one.details) - len(told))


def _cell(name: str, checks: Sequence[Check]) -> tuple[str, str]:
    found = next((one for one in checks if one.name == name and one.verdict != ABSENT), None)
    return ("", "") if found is None else (found.verdict, _number(found.value))


def _summary(checks: Sequence[Check]) -> str:
    counts = Counter(one.verdict for one in checks)
    words = {GOOD: "good", OPEN: "open (look at it)", BAD: "bad", ABSENT: "not measured"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])


def _title(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
