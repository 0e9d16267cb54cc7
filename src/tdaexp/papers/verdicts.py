"""A claim of a paper, and what runs say of it: reproduced, not reproduced, or contradicted with its cause.

A claim is contradicted with a cause where the runs do not bear it out, and the same finding holds in another reading of
them (the labels of two figures exchanged; a quantity as a program draws it, not as a text defines it) or under other
settings (`grokking_seeds`). What runs merely fail to show is not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tdaexp.report.findings import Statement

Numbers = Mapping[str, float]
GOOD, BAD, CAUSE = "good", "bad", "cause"
VERDICTS = {GOOD: "reproduced", BAD: "not reproduced", CAUSE: "contradicted, cause found"}


@dataclass(frozen=True)
class Reading:
    """Another reading of the same run, under which the finding may hold: `words` name the cause."""

    words: str
    holds: Callable[[Numbers], bool]


@dataclass(frozen=True)
class Claim:
    """`states` holds the claim against one run's numbers (its tone: good or bad); `number` is what it turns on,
    `about` in words.
    """

    name: str
    about: str
    number: Callable[[Numbers], float]
    states: Callable[[Numbers], Statement]
    readings: tuple[Reading, ...] = ()

    def stated(self, numbers: Numbers) -> Statement | None:
        """One run's statement, with the cause where a reading has one; None where the run lacks a number of it."""
        try:
            found = self.states(numbers)
        except KeyError:
            return None
        causes = [one.words for one in self.readings if found.tone == BAD and holds(one, numbers)]
        return Statement(found.claim, f"{found.text} It holds {causes[0]}.", CAUSE) if causes else found


def holds(reading: Reading, numbers: Numbers) -> bool:
    """Whether the reading has its numbers in this run, and they bear the finding out."""
    try:
        return reading.holds(numbers)
    except KeyError:
        return False


def key(name: str) -> Callable[[Numbers], float]:
    """The number of that name."""
    return lambda numbers: float(numbers[name])


def stated(claims: list[Claim], numbers: Numbers) -> list[Statement]:
    """The statements of one run, in the order of the claims; those that it has no numbers for are left out."""
    return [found for found in (claim.stated(numbers) for claim in claims) if found is not None]
