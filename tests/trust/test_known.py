"""Coverage, the check at load, completeness and solvers: what is made of numbers that the run has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from tdaexp.building.self_check import Outcome
from tdaexp.models.components import ComponentMap, grouped
from tdaexp.trust.check import NotMeasured
from tdaexp.trust.known import completeness, coverage, self_check, solver

SIZES = {"a": 50, "b": 30, "c": 18}


def components(skipped: int) -> ComponentMap:
    found = grouped({name: (name,) for name in SIZES}, SIZES).components
    return ComponentMap(found, {"odd.scale": skipped} if skipped else {}, sum(SIZES.values()) + skipped)


def answer(names):
    values = np.zeros((1, 2, len(names)))
    return xr.Dataset({"influence": (("query", "candidate", "component"), values)}, {"component": names})


@pytest.mark.parametrize(
    ("skipped", "names", "value", "verdict", "said"),
    [
        (2, ["a", "b", "c"], 0.98, "good", "skipped, as nothing attributes them: odd.scale (2)"),
        (2, ["a", "b"], 0.8, "open", "left out by choice: c (18)"),
        (102, ["a", "b", "c"], 0.49, "bad", "odd.scale (102)"),
        (0, ["a", "b", "c"], 1.0, "good", "100 % of the 98 parameters are attributed, in 3 components."),
    ],
)
def test_coverage(skipped, names, value, verdict, said):
    check = coverage(answer(names), components(skipped))
    assert check.value == pytest.approx(value) and check.verdict == verdict and said in check.says


def test_what_has_no_components_has_no_coverage():
    with pytest.raises(NotMeasured):
        coverage(answer(["a"]).sum("component"), components(0))


def test_the_worst_of_two_models_is_told():
    right = Outcome(2e-7, "a", 3, 1, torch.float32)
    check = self_check([right, Outcome(5e-5, "b", 3, 0, torch.float32)])
    assert check.value == 5e-5 and "'b'" in check.says and check.verdict == "good"
    assert "autograd itself forms those of 1 others" in check.says
    with pytest.raises(NotMeasured):
        self_check([Outcome(0.0, "", 0, 4, torch.float32)])


@pytest.mark.parametrize(("left", "verdict"), [(1e-6, "good"), (0.05, "open"), (0.5, "bad")])
def test_completeness_is_of_norms(left, verdict):
    change = np.array([[3.0, 4.0]])
    sums = {"change": (("query", "output"), change), "residual": (("query", "output"), np.array([[5 * left, 0.0]]))}
    check = completeness(xr.Dataset(sums))
    assert check.value == pytest.approx(left) and check.verdict == verdict


@pytest.mark.parametrize(("residual", "verdict"), [(1e-3, "good"), (5e-3, "open"), (0.2, "bad")])
def test_a_solver_that_did_not_get_there_is_told(residual, verdict):
    store = xr.Dataset(attrs={"residual": residual, "tolerance": 1e-3, "converged": verdict == "good"})
    assert solver(store).verdict == verdict
