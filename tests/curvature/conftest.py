"""Models in float64 are compared at float64's rounding."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def in_float64(exact_softmax):
    """`exact_softmax` (the tests' own conftest.py), for every test of this folder."""
