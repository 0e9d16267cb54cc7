"""The best setting of each method: by the way its metric points, and with all seeds before with few."""

import pandas as pd
import pytest
from scipy import stats

from tdaexp.app.leaderboard.board import COLUMNS
from tdaexp.report.leaderboard import aggregated


def cells(metric: str, **values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"subject": "digits", "seed": seed, "method": method, "setting": setting, "metric": metric, "value": value,
         "query_set": "test", "low": value - 1, "high": value + 1, "queries": 9, "cost_seconds": 2.0, "failed": ""}
        for method, of_setting in values.items()
        for setting, several in of_setting.items()
        for seed, value in enumerate(several)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(
    ("metric", "best", "first"), [("lds_same", "x=1", "ekfac"), ("brittleness_same", "x=2", "dot")]
)
def test_the_best_is_what_the_metric_calls_so(metric, best, first):
    table = aggregated(cells(metric, dot={"": [0.2]}, ekfac={"": [0.5], "x=1": [0.6], "x=2": [0.3]}))
    assert table["method"].tolist()[0] == first
    assert table.set_index("method").loc["ekfac", ["setting", "default"]].tolist() == [best, 0.5]


def test_a_setting_that_failed_with_some_seeds_is_not_the_best():
    table = aggregated(cells("lds_same", ekfac={"": [0.5, 0.7], "x=1": [0.9]}))
    low, high = stats.t.interval(0.95, 1, loc=0.6, scale=stats.sem([0.5, 0.7]))
    (row,) = table.to_dict("records")
    assert (row["setting"], row["seeds"]) == ("", 2)
    assert [row["value"], row["low"], row["high"]] == pytest.approx([0.6, low, high])


def test_nothing_was_judged():
    assert aggregated(cells("lds_same")).empty
