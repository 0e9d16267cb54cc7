"""Predicting tokens: where logits are needed, and what each of them weighs."""

from __future__ import annotations

import numpy as np
import pytest
from gradient_oracle import make_examples

from tdaexp.data.examples import Example, collate
from tdaexp.objectives.tokens import loss_positions
from tdaexp.runtime.errors import UserError


def test_loss_positions():
    """Positions are those before the predicted tokens; padding has weight 0."""
    masks = [[False, True, False, True], [False, False, False, True], [True, False, True, True]]
    examples = [Example(str(k), np.arange(4) + 4 * k, np.array(mask), "") for k, mask in enumerate(masks)]
    positions, targets, weights = loss_positions(collate(examples))
    assert positions.tolist() == [[0, 2], [2, 0], [1, 2]]  # position 0 is never predicted
    assert targets[0].tolist() == [1, 3] and targets[1, 0] == 7 and targets[2].tolist() == [10, 11]
    assert weights.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]


def test_an_example_without_loss_and_an_unknown_reduction_are_refused():
    silent = Example("s", np.arange(3), np.zeros(3, dtype=bool), "")
    with pytest.raises(UserError, match="no token with a loss"):
        loss_positions(collate([silent]))
    with pytest.raises(UserError, match="did you mean 'mean'"):
        loss_positions(collate(list(make_examples(0, 1))), "meen")
