"""Problems about a small module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_module import Small, in_type
from torch import nn

from tdaexp.building.own import own_problem
from tdaexp.problem import Problem


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Problem]:
    """A problem of 12 training rows and 5 queries about a `Small` of a type."""

    def make(dtype: torch.dtype = torch.float32, model: nn.Module | None = None, of=in_type) -> Problem:
        generator = torch.Generator().manual_seed(1)
        rows = [(torch.randn(5, generator=generator), torch.randn(3, generator=generator)) for _ in range(17)]
        torch.manual_seed(0)
        made = (model or Small()).to(dtype)
        return own_problem(made, rows[:12], rows[12:], loss=of, cache=tmp_path)

    return make
