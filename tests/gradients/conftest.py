"""Models that several tests of gradients share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gradient_oracle import build_model
from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def models() -> Callable[..., PreTrainedModel]:
    """Build a variant once per session and dtype."""
    built: dict[tuple[str, torch.dtype], PreTrainedModel] = {}

    def get(variant: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        if (variant, dtype) not in built:
            built[variant, dtype] = build_model(variant, dtype)
        return built[variant, dtype]

    return get
