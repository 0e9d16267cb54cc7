"""Sums over some steps of a store, against the numbers that it was made of."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import softmax

from tdaexp.metrics.subsampling import StepSums
from tdaexp.runtime.errors import UserError


@pytest.fixture
def store():
    generator = np.random.default_rng(0)
    kernel, decay = generator.standard_normal((2, 6, 5, 3))
    start = generator.standard_normal((5, 3))
    axes = ("step", "query", "output")
    return xr.Dataset(
        {
            "influence": (axes, kernel), "regularisation": (axes, decay),
            "start": (axes[1:], start), "change": (axes[1:], (kernel + decay).sum(0)),
        },
        {"step": np.arange(0, 12, 2)}, {"output": "logits"},
    )  # fmt: skip


def test_all_steps_are_the_model(store):
    found = StepSums(store).over(range(0, 12, 2))
    assert found.agreement.mean() == 1 and found.correlation == pytest.approx(1)
    np.testing.assert_allclose(found.kl, 0, atol=1e-12)
    assert found.missing == pytest.approx(0, abs=1e-12)


def test_some_steps(store):
    found = StepSums(store).over([2, 10])
    part = (store["influence"] + store["regularisation"]).values[[1, 5]].sum(0)
    start, change = store["start"].values, store["change"].values
    p, q = softmax(start + change, axis=1), softmax(start + part, axis=1)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(1))
    assert found.agreement.tolist() == (p.argmax(1) == q.argmax(1)).astype(float).tolist()
    assert found.missing == pytest.approx(np.sqrt(((part - change) ** 2).sum() / (change**2).sum()))
    assert found.correlation == pytest.approx(np.corrcoef(part.ravel(), change.ravel())[0, 1])


def test_summed_axes_and_other_outputs_are_refused(store):
    with pytest.raises(UserError, match=r"the axis step was summed.*experiment=explaind_subsampling"):
        StepSums(store.drop_vars("influence").assign(influence=store["influence"].sum("step")))
    with pytest.raises(UserError, match="classes need"):
        StepSums(store.assign_attrs(output="loss"))
