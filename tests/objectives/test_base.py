"""The loss and its Hessian, which all objectives of logits share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.tokens import NextToken


def test_cross_entropy_is_formed_in_float32():
    logits = torch.randn(2, 3, 7, dtype=torch.bfloat16)
    targets, weights = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    values = cross_entropy(logits, targets, weights)
    terms = -torch.log_softmax(logits.float(), dim=2)[..., 0]
    torch.testing.assert_close(values, (terms * weights).sum(1))


@pytest.mark.parametrize("objective", [NextToken(), Classes()])
def test_the_hessian_is_the_second_derivative_of_cross_entropy_whatever_the_label(objective):
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(4, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = objective.hessian(logits, directions)
    for row, column, label in np.ndindex(2, 3, 5):
        target = torch.tensor(label)
        hessian = torch.autograd.functional.hessian(
            lambda z, y=target: nn.functional.cross_entropy(z, y), logits[row, column]
        )
        torch.testing.assert_close(found[:, row, column], directions[:, row, column] @ hessian)
