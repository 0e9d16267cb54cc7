"""Named outputs read the right logits, and say what they cannot read."""

import pytest
import torch

from tdaexp.pathkernel.outputs import output
from tdaexp.runtime.errors import UserError


def test_a_coordinate_is_one_logit():
    logits = torch.arange(6.0).reshape(2, 3)
    assert output("coordinate:2").read(logits, torch.zeros(2, dtype=torch.int64)).tolist() == [[2.0], [5.0]]


def test_a_coordinate_beyond_the_outputs_is_told():
    with pytest.raises(UserError, match=r"coordinate:3: the model has 3 outputs, 0 to 2"):
        output("coordinate:3").read(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
