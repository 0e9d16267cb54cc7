"""What a check is: a number about one answer, the verdict on it, and a sentence that a person can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd

from tdaexp.runtime.errors import UserError

GOOD, OPEN, BAD, ABSENT = "good", "open", "bad", "absent"
VERDICTS = (GOOD, OPEN, BAD, ABSENT)
FILE = "trust.json"
"""In a run's folder: the list of its checks."""
COLUMNS = ["check", "value", "verdict", "threshold", "says", "how"]


class NotMeasured(Exception):
    """A check has no meaning for this answer, or would cost too much; the message says which, for people."""


@dataclass(frozen=True)
class Bounds:
    """A value up to `good` is good and one beyond `bad` is bad; where `good` is the larger, more is better."""

    good: float
    bad: float

    def verdict(self, value: float) -> str:
        """good, open or bad; NaN is bad."""
        sign = 1 if self.good <= self.bad else -1
        if sign * value <= sign * self.good:
            return GOOD
        return OPEN if sign * value <= sign * self.bad else BAD

    def __str__(self) -> str:
        words = ("up to", "above") if self.good <= self.bad else ("from", "below")
        return f"good {words[0]} {self.good:g}, bad {words[1]} {self.bad:g}"


@dataclass(frozen=True)
class Check:
    """A check of an answer: `value` (None: not measured, or no finite number) with its `verdict` by the `threshold`;
    `says` in a sentence what that means, `how` it was measured; `details` are further numbers, such as one for each
    question.
    """

    name: str
    value: float | None
    verdict: str
    threshold: str
    says: str
    how: str
    details: dict[str, float] = field(default_factory=dict)


def judged(
    name: str, value: float, bounds: Bounds, says: str, how: str, details: dict[str, float] | None = None
) -> Check:
    """The check of a value, with the verdict that its bounds give; one that is not finite is bad, and not a number."""
    return Check(
        name,
        float(value) if math.isfinite(value) else None,
        bounds.verdict(value),
        str(bounds),
        says,
        how,
        details or {},
    )


def absent(name: str, reason: object) -> Check:
    """A check that was not made, and why."""
    return Check(name, None, ABSENT, "", f"Not measured: {reason}.", "")


def flat(checks: Sequence[Check]) -> dict[str, float]:
    """`trust/NAME` for each value, and `trust/bad`, how many are bad; nothing where no check was made."""
    found = {f"trust/{one.name}": one.value for one in checks if one.value is not None}
    return found | {"trust/bad": float(sum(one.verdict == BAD for one in checks))} if checks else {}


def table(checks: Sequence[Check]) -> pd.DataFrame:
    """A row for each check, as `COLUMNS`; the value is NaN where it was not measured."""
    rows = [
        (one.name, math.nan if one.value is None else one.value, one.verdict, one.threshold, one.says, one.how)
        for one in checks
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as plain data."""
    return {"checks": [asdict(one) for one in checks]}


def from_json(found: dict[str, Any], where: str) -> list[Check]:
    """What `as_json` gave; empty where there is none. Errors (UserError): `where` holds something else."""
    try:
        checks = [Check(**one) for one in found.get("checks", [])]
    except TypeError as error:
        raise UserError(f"{where}: damaged ({error}); delete it, or run attribute.py again") from error
    names = [one.name for one in fields(Check)]
    for one in checks:
        if one.verdict not in VERDICTS:
            raise UserError(f"{where}: damaged (a verdict '{one.verdict}' among {names}); run attribute.py again")
    return checks
