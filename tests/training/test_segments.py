"""Segments of a training: where they are cut, what stands for them, how far their learning rates add up."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp.history import Course, Moment
from tdaexp.runtime.errors import UserError
from tdaexp.training.segments import check_boundaries, segments_of


class Kept:
    """Checkpoints after these steps of a training whose learning rates are 1, 2, 3, …"""

    def __init__(self, steps: list[int], total: int) -> None:
        self.steps, self.total = steps, total

    def moments(self, steps, count):
        return [Moment(step, 1.0, f"at {step}", lambda: None) for step in self.steps]

    def course(self):
        return Course(np.arange(1.0, self.total + 1), "sgd", 0.0, {})


def test_segments_of_as_many_checkpoints_cover_every_step():
    found = segments_of(Kept([2, 4, 6, 8, 10], 11), 2, None, 5)
    assert [(one.start, one.stop) for one in found] == [(0, 6), (6, 11)]
    assert [[moment.step for moment in one.moments] for one in found] == [[2, 4, 6], [8, 10]]
    assert [one.rates for one in found] == [21.0, 45.0]


def test_of_a_recording_the_first_step_counts_too():
    found = segments_of(Kept(list(range(9)), 9), 3, None, 1)
    assert [[moment.step for moment in one.moments] for one in found] == [[1], [4], [7]]
    assert sum(one.rates for one in found) == 45.0 and found[0].start == 0 and found[-1].stop == 9


@pytest.mark.parametrize(("checkpoints", "steps"), [(1, [30]), (2, [20, 50]), (9, [10, 20, 30, 40, 50])])
def test_at_most_so_many_stand_for_a_segment(checkpoints, steps):
    (one,) = segments_of(Kept([10, 20, 30, 40, 50], 50), 1, None, checkpoints)
    assert [moment.step for moment in one.moments] == steps


def test_cut_where_it_is_asked_for():
    found = segments_of(Kept([10, 20, 30, 40], 40), 7, [10, 25], 9)
    assert [[moment.step for moment in one.moments] for one in found] == [[10], [20], [30, 40]]
    assert found[1].rates == sum(range(11, 26))


@pytest.mark.parametrize("boundaries", [[20, 10], [10, 10], [0], [-3, 5]])
def test_out_of_order(boundaries):
    with pytest.raises(UserError, match=r"method.boundaries=\[.*\]: -?\d+ stands behind \d+; .* in rising order"):
        check_boundaries(boundaries)


def test_what_has_no_checkpoint():
    kept = Kept([10, 20], 30)
    with pytest.raises(UserError, match=r"segments=3: the training left 2 .*\(trainer.fit.checkpoint_every=5\)"):
        segments_of(kept, 3, None, 2)
    with pytest.raises(UserError, match=r"segments=3: .*trainer.finetune.checkpoint_every=5"):
        segments_of(kept, 3, None, 2, "trainer.finetune")
    with pytest.raises(UserError, match=r"no checkpoint from step 12 to 15; it has 10, 20; move"):
        segments_of(kept, 3, [12, 15], 2)
    with pytest.raises(UserError, match=r"boundaries=\[10, 30\]: the training has 30 steps.*behind 30; leave it out"):
        segments_of(kept, 3, [10, 30], 2)
