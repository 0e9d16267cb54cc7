import numpy as np
import pytest
from scipy import stats

from tdaexp.metrics import intervals
from tdaexp.metrics.intervals import Interval, bootstrap, versus
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError


def test_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(0).normal(3, 2, 300)
    ours = bootstrap(values[None], MetricSettings(bootstrap=20_000, confidence=0.9))[0]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", random_state=1
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    spread = 2 / np.sqrt(300)
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)


def test_rows_share_their_resamples():
    values = np.random.default_rng(0).normal(size=50)
    first, second, difference = bootstrap(np.stack([values, values + 2, np.full(50, 2.0)]), MetricSettings())
    assert second.low - first.low == pytest.approx(2)
    assert second.high - first.high == pytest.approx(2)
    assert difference == Interval(2, 2, 2)


def test_memory_bound_does_not_change_the_answer(monkeypatch):
    values = np.random.default_rng(0).normal(size=(1, 37))
    whole = bootstrap(values, MetricSettings(bootstrap=101))
    monkeypatch.setattr(intervals, "CHUNK", 37 * 10)
    assert bootstrap(values, MetricSettings(bootstrap=101)) == whole


def test_verdicts():
    assert versus(Interval(0.2, 0.1, 0.3)) == "+"
    assert versus(Interval(-0.2, -0.3, -0.1)) == "−"
    assert versus(Interval(0.1, 0.0, 0.3)) == "≈"
    assert versus(intervals.UNKNOWN) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bootstrap", 0),
        ("folds", 1),
        ("top_k", 0),
        ("confidence", 0.0),
        ("confidence", 1.0),
        ("confidence", 95.0),
    ],
)
def test_settings_without_meaning_are_refused(key, value):
    with pytest.raises(UserError, match=f"metric.{key}"):
        MetricSettings(**{key: value})
