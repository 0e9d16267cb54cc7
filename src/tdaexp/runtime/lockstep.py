"""Work that all processes of a run must do at once, because each of them holds a share of what it needs.

The processes have different blocks of work, with different numbers of passes through a model. Before every pass they
agree on whose turn it is: the lowest numbered partner (passes of one kind through one model) that any of them wants.
Who wants another one, or has nothing left to do, takes part idly. A process that leaves its blocks stays for the others
(`serve`).
"""

from __future__ import annotations

from collections.abc import Callable

from tdaexp.runtime import ranks, stop

_partners: list[Callable[[], None]] = []


def join(idle: Callable[[], None]) -> int:
    """Number of a new partner; `idle` takes part in one of its passes without work of one's own.

    Every process has the same partners in the same order.
    """
    _partners.append(idle)
    return len(_partners) - 1


def wait_for_turn(partner: int) -> None:
    """Come back once all processes are in a pass of that partner, after idle passes for those that go before.

    Errors: `Lost` when another process ended.
    """
    while (chosen := _agreed(partner)) != partner:
        _partners[chosen]()


def serve() -> None:
    """Take part in the passes of the others until none has work left. Errors as for `wait_for_turn`."""
    if ranks.current().world == 1:
        return
    while _partners and (chosen := _agreed(None)) >= 0:
        _partners[chosen]()


def _agreed(wanted: int | None) -> int:
    """The lowest partner that any process wants, -1 where none wants any.

    That one process is to stop is told to all: each ends after the block at hand.
    """
    import torch

    wishes = torch.zeros(1 + len(_partners))
    wishes[0] = isinstance(stop.requested(), stop.Stopped)
    if wanted is not None:
        wishes[1 + wanted] = 1
    ranks.together(wishes, leave=False)
    if wishes[0]:
        stop.request(stop.Stopped())
    found = wishes[1:].nonzero()
    return int(found[0]) if len(found) else -1
