"""The cache bounds the memory of the products, not the number of queries."""

from __future__ import annotations

import json
import sys

import pytest
from nursery import run

CACHE_MB = 100  # as in the benchmark


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["select", "project"])
def test_four_times_the_queries_need_the_same_memory(kind, repository):
    def peak(queries: int) -> float:
        command = [sys.executable, str(repository / "benchmarks" / "memory.py"), str(queries), kind]
        done = run(command, check=True)
        return float(json.loads(done.stdout.splitlines()[-1])["peak"])

    few, many = peak(200), peak(800)
    assert few > 0.5 * CACHE_MB  # the cache is full already, so that its bound is what is tested
    assert many < 2 * CACHE_MB
    assert many - few < 0.4 * CACHE_MB
