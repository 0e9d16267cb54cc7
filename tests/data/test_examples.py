"""Lists of examples: what is looked up one by one is made once."""

from __future__ import annotations

import numpy as np
import pytest

from tdaexp.data.examples import Example, Examples
from tdaexp.objectives.own_loss import OwnExamples

TOKENS = np.arange(3)
LISTS = {
    "texts": Examples([Example(f"e{k}", TOKENS, TOKENS > 0, "") for k in range(4)]),
    "own": OwnExamples([0, 1, 2, 3], names=("e0", "e1", "e2", "e3")),
}


@pytest.mark.parametrize("kind", LISTS)
def test_an_id_costs_no_list_of_all(kind):
    examples = LISTS[kind]
    assert examples.ids is examples.ids == ["e0", "e1", "e2", "e3"]
    assert examples.select([2, 0]).ids == ["e2", "e0"]
