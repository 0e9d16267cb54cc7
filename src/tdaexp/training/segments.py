"""Segments of a training: consecutive steps, the checkpoints that stand for them, and how far the rates went there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tdaexp.history import Course, History, Moment
from tdaexp.runtime.errors import UserError

EVERY = 10**9
"""Moments of a recording: all."""


@dataclass(frozen=True)
class Segment:
    """The updates from step `start` up to `stop`; `moments` stand for it, `rates` is the sum of its learning rates."""

    start: int
    stop: int
    moments: tuple[Moment, ...]
    rates: float


def segments_of(
    history: History, count: int, boundaries: Sequence[int] | None, checkpoints: int, key: str = "trainer.fit"
) -> list[Segment]:
    """A training in `count` segments of about as many moments each, or cut at the `boundaries` (steps, rising).

    Of a segment's moments at most `checkpoints` stand for it, evenly spaced. `key` names the training's settings.
    Errors (UserError): boundaries that do not rise or lie outside the training, too few moments.
    """
    course, moments = history.course(), history.moments(None, EVERY)
    total = len(course.rates)
    if boundaries is None:
        if len(moments) < count:
            raise UserError(
                f"method.segments={count}: the training left {len(moments)} checkpoints, and a segment needs one at "
                f"least; let it keep more ({key}.checkpoint_every={max(1, total // (2 * count))}), or ask for fewer"
            )
        parts = np.array_split(np.arange(len(moments)), count)
        boundaries = [moments[part[-1]].step for part in parts[:-1]]
    else:
        check_boundaries(boundaries, total)
    edges = [0, *boundaries, total]
    return [_segment(course, moments, start, stop, checkpoints, key) for start, stop in itertools.pairwise(edges)]


def check_boundaries(boundaries: Sequence[int], total: int | None = None) -> None:
    """Refuse (UserError) steps that do not rise, or that do not lie within `total` steps."""
    for before, after in itertools.pairwise([0, *boundaries]):
        if after <= before:
            raise UserError(
                f"method.boundaries={list(boundaries)}: {after} stands behind {before}; name the steps at which one "
                "segment ends and the next begins, from 1, in rising order"
            )
    if total is not None and boundaries and boundaries[-1] >= total:
        raise UserError(
            f"method.boundaries={list(boundaries)}: the training has {total} steps, so that no segment is behind "
            f"{boundaries[-1]}; leave it out"
        )


def _segment(course: Course, moments: list[Moment], start: int, stop: int, checkpoints: int, key: str) -> Segment:
    """A checkpoint after `stop` steps belongs to the segment that ends there."""
    inside = [one for one in moments if start < one.step <= stop or start == one.step == 0]
    if not inside:
        raise UserError(
            f"method.boundaries: the training left no checkpoint from step {start} to {stop}; it has "
            f"{', '.join(str(one.step) for one in moments)}; move the boundaries, or set {key}.checkpoint_every"
        )
    parts = np.array_split(np.arange(len(inside)), min(checkpoints, len(inside)))
    chosen = tuple(inside[part[len(part) // 2]] for part in parts)
    return Segment(start, stop, chosen, float(course.rates[start:stop].sum()))
