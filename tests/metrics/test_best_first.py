"""The best first, whichever way a metric points, in parts that stay in their order."""

import pandas as pd

from tdaexp.metrics.averaging import mean_retrained
from tdaexp.metrics.best_first import best_first

ROWS = [("removal_same", "a", 0.2), ("brittleness_same", "a", 0.5), ("removal_same", "b", 0.3),
        ("brittleness_same", "b", 0.1), ("brittleness_same", "c", 0.3)]  # fmt: skip
TABLE = pd.DataFrame(ROWS, columns=["metric", "method", "value"]).assign(query_set="test", low=0, high=1, queries=4)
WANTED = [("removal_same", "b"), ("removal_same", "a")] + [("brittleness_same", one) for one in "bca"]


def order(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["metric"], table["method"], strict=True))


def test_the_best_value_stands_first():
    assert order(best_first(TABLE)) == WANTED


def test_of_means_too():
    assert order(mean_retrained(TABLE, {}, 0.95)) == WANTED
