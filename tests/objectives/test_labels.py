"""Labels drawn from the model: their frequencies, and whose random numbers they follow from."""

from __future__ import annotations

import numpy as np
import torch

from tdaexp.objectives.labels import draw, uniforms


def test_labels_have_the_softmax_frequencies_and_are_never_impossible():
    logits = torch.tensor([[2.0, -torch.inf, 0.5, 1.0, -torch.inf]]).expand(20_000, -1)
    numbers = torch.from_numpy((np.arange(20_000) + 0.5) / 20_000)
    found = draw(logits, numbers).bincount(minlength=5) / 20_000
    torch.testing.assert_close(found, logits[0].softmax(0), atol=2e-4, rtol=0)
    edges = draw(logits[:2], torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))
    assert edges.tolist() == [0, 3]


def test_random_numbers_belong_to_the_example():
    one, two = uniforms(["a", "b", "c"], 0, 5), uniforms(["c", "a"], 0, 7)
    assert torch.equal(one[0], two[1, :5]) and torch.equal(one[2], two[0, :5])
    assert not torch.equal(one[0], one[1]) and not torch.equal(uniforms(["a"], 1, 5)[0], one[0])
