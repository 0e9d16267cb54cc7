"""Which stores models that are trained again can judge, before anything is built."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import xarray as xr

from tdaexp.app.stages.retraining import _tell_other_measurements, judged_by_retraining
from tdaexp.metrics.judging_settings import Lds
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError

CONFIG = SimpleNamespace(metric=MetricSettings(lds=Lds(subsets=3)), cache_dir="cache")


def store(study: str | None, **config) -> xr.Dataset:
    return xr.Dataset(attrs={"study": study, "config": config})


@pytest.mark.parametrize(
    ("stores", "said"),
    [
        ({"a": store("one"), "b": store("two")}, "the runs are of 2 models or data sets"),
        ({"a": store("one"), "b": store(None)}, "nothing says which model the scores 'b' are of"),
        ({"b": store(None)}, "no store says how its model was trained"),
        ({"a": store("one", model={"name": "given"})}, "no configuration says how the model was trained"),
    ],
)
def test_what_cannot_be_judged_says_why(stores, said):
    with pytest.raises(UserError, match=said):
        judged_by_retraining(CONFIG, stores)


def test_nothing_is_judged_where_no_metric_asks():
    assert judged_by_retraining(SimpleNamespace(metric=MetricSettings()), {"a": store("one")}) == []


def test_a_store_about_another_measurement_is_told(caplog):
    stores = {"a": store("x", method={"measurement": "logit_margin"}), "b": store("x", method={})}
    with caplog.at_level(logging.WARNING):
        _tell_other_measurements(stores, MetricSettings())
    assert [record.getMessage() for record in caplog.records] == [
        "'a' is about logit_margin, and judged on metric.retraining.measurement=log_likelihood"
    ]
