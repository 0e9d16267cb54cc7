"""A share of an index's blocks: what one task of several builds, `shard=3/64` the third of 64."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class Share:
    """Task `number` of `of`, counted from 1: every `of`-th block from the `number`-th on."""

    number: int
    of: int

    def of_blocks(self, count: int) -> range:
        """Numbers of its blocks among so many."""
        return range(self.number - 1, count, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def share_of(text: str) -> Share:
    """The share that a text such as 3/64 names. Errors (UserError): it names none."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    share = Share(*map(int, found.groups())) if found else Share(0, 0)
    if not 1 <= share.number <= share.of:
        raise UserError(f"shard={text}: must be the number of a task and how many there are, shard=1/4 to shard=4/4")
    return share
