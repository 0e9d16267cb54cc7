"""Models in float64 are compared at float64's rounding: nothing in them may be rounded to float32."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch):
    """Attention of BLOOM and routers of experts ask for a softmax in float32, which rounds a row by its place in the
    batch (the vector unit's body or its tail, other ones on other processors): here it stays in float64.
    """
    softmax = torch.nn.functional.softmax

    def exact(values, dim=None, _stacklevel=3, dtype=None):
        return softmax(values, dim, _stacklevel, values.dtype if values.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)
