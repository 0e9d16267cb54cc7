"""AUC against scikit-learn's, with intervals that hold the truth of normal values."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tdaexp.metrics.mislabelled import auc, found_intervals, share_found
from tdaexp.metrics.settings import MetricSettings

FAULTY = np.arange(60) < 12


@pytest.mark.parametrize("digits", [1, 8])
def test_auc_is_that_of_scikit_learn(digits):
    values = np.round(np.random.default_rng(0).standard_normal(60) + FAULTY, digits)
    assert auc(values, FAULTY) == pytest.approx(roc_auc_score(FAULTY, values), abs=1e-12)


def test_the_share_that_is_found():
    values = -np.arange(60.0)
    assert share_found(values, FAULTY, 0.1) == 6 / 12 and share_found(-values, FAULTY, 0.1) == 0
    assert share_found(values, FAULTY, 1e-3) == 1 / 12


def test_intervals():
    generator = np.random.default_rng(1)
    truth, held, widths = norm.cdf(1 / np.sqrt(2)), 0, []  # of two normal values whose means are 1 apart
    for _ in range(40):
        values = generator.standard_normal(60) + FAULTY
        area, first = found_intervals(values, FAULTY, 0.2, MetricSettings(bootstrap=100, confidence=0.9))
        held += area.low <= truth <= area.high
        widths.append(area.high - area.low)
        assert first.low <= share_found(values, FAULTY, 0.2) <= first.high
    assert held >= 30  # 36 ± 3 standard deviations
    assert 0.15 < np.mean(widths) < 0.35  # Hanley and McNeil's standard error is 0.08


def test_rows_that_tie_are_taken_by_row_in_resamples_too():
    """Faulty rows that stand last are not found where all values are the same."""
    _, first = found_intervals(np.zeros(60), FAULTY[::-1].copy(), 0.1, MetricSettings(bootstrap=100))
    assert first.value == 0 and first.high < 0.2
