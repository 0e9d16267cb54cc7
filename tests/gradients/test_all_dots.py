"""All products of two batches against explicit gradients."""

from __future__ import annotations

import pytest
import torch

from tdaexp.gradients import all_dots as module
from tdaexp.gradients.all_dots import all_dots
from tdaexp.gradients.factors import EmbeddingFactors, LinearFactors, TiedFactors, VectorFactors


def side(examples: int, positions: int, width: int, seed: int):
    """Factors of every kind: two linear components that read the same input, a tied matrix, an embedding, a norm."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = draw(examples, positions, width)
    ids = torch.randint(6, (examples, positions), generator=generator)
    lookup = EmbeddingFactors(ids, draw(examples, positions, width), 6)
    return [
        LinearFactors(inputs, draw(examples, positions, 3), True),
        LinearFactors(inputs, draw(examples, positions, 5), False),
        LinearFactors(draw(examples, positions, 4), draw(examples, positions, 2), True),
        TiedFactors(lookup, LinearFactors(draw(examples, positions, width), draw(examples, positions, 6), False)),
        EmbeddingFactors(ids, draw(examples, positions, 4), 6),
        VectorFactors(draw(examples, 7)),
    ]


@pytest.mark.parametrize("positions", [1, 2, 30])
@pytest.mark.parametrize("room", [1, 1 << 25])
def test_every_pair_of_every_kind(monkeypatch, positions, room):
    """Few positions are multiplied by Gram matrices (also one example at a time), many by explicit gradients."""
    monkeypatch.setattr(module, "GRAM_BYTES", room)
    left, right = side(3, 2, 8, 0), side(4, positions, 8, 1)
    wanted = torch.stack([one.materialise() @ other.materialise().T for one, other in zip(left, right, strict=True)], 2)
    torch.testing.assert_close(all_dots(left, right), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(all_dots(left[2:3], right[2:3]), wanted[:, :, 2:3], rtol=1e-10, atol=1e-10)
