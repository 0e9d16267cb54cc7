"""The page of a decomposition: its numbers against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tdaexp.report.decomposition import by_query, component_sums, decomposition_findings, most_influential

RNG = np.random.default_rng(0)


def store(**kept: int) -> xr.Dataset:
    """Influence over the kept axes, regularisation over those without train; 3 queries, 2 outputs, 4 steps."""
    without = {axis: size for axis, size in kept.items() if axis != "train"}
    data = {"influence": (list(kept), RNG.normal(size=tuple(kept.values()))),
            "regularisation": (list(without), RNG.normal(size=tuple(without.values())))}  # fmt: skip
    data |= {name: (["query", "output"], RNG.normal(size=(3, 2))) for name in ("start", "change", "residual")}
    data |= {name: (["step"], RNG.random(4)) for name in ("change_norm", "residual_norm", "nodes")}
    names = {"component": ["a", "b"], "train": [f"t{k}" for k in range(12)], "query": ["q0", "q1", "q2"]}
    coords = {axis: names[axis] for axis in kept if axis in names} | {"query": names["query"], "step": range(4)}
    return xr.Dataset(data, coords, {"output": "logits"})


def test_sums_by_component():
    found = store(component=2, train=12, query=3)
    shares = component_sums(found)
    wanted = found["influence"].values.sum((1, 2))
    np.testing.assert_allclose(shares.sel(part_of_update="influence").values, wanted)
    np.testing.assert_allclose(
        shares.sel(part_of_update="regularisation").values, found["regularisation"].values.sum(1)
    )
    assert "component" not in component_sums(store(step=4)).dims


def test_the_most_influential_are_those_with_the_largest_absolute_sums():
    found = store(component=2, train=12, query=3)
    summed = found["influence"].values.sum(0)  # [train, query]
    table = most_influential(found)
    order = np.argsort(-np.abs(summed).sum(1))[:10]
    assert list(table["train"]) == [f"t{k}" for k in order]
    np.testing.assert_allclose(table["influence"], summed.sum(1)[order])
    np.testing.assert_allclose(table["absolute"], np.abs(summed).sum(1)[order])
    rows = by_query(found)
    own = rows[rows["query"] == "q1"]
    order = np.argsort(-np.abs(summed[:, 1]))[:10]
    assert list(own["train"]) == [f"t{k}" for k in order]
    np.testing.assert_allclose(own["influence"], summed[order, 1])
    alone = store(train=12)
    assert most_influential(alone)["influence"].abs().tolist() == pytest.approx(most_influential(alone)["absolute"])


def test_the_account_names_what_moved_the_outputs(monkeypatch):
    found = store(step=4, component=2)
    measures = {"agreement": 0.5, "kl": 0.25}
    monkeypatch.setattr("tdaexp.report.decomposition.reconstruction", lambda _: measures)
    page = decomposition_findings(found, "explaind")
    texts = " ".join(one.text for one in page.statements)
    assert f"training examples {float(found['influence'].sum()):+.4g}" in texts and "a share of 0.5000" in texts
    left = np.linalg.norm(found["residual"]) / np.linalg.norm(found["change"])
    assert f"The sums leave {left:.2g} of" in texts
    assert page.metrics == {"explaind/agreement": 0.5, "explaind/kl": 0.25,
                            "explaind/nodes": pytest.approx(float(found["nodes"].mean()))}  # fmt: skip
    assert {one.name for one in page.drawings} == {"completeness", "influence", "components"}
    assert "single entry" not in texts
    checked = found.assign_attrs(entry_error=0.0123).assign(entry_error=("step", np.array([0.1, np.nan, 0.2, 0.0])))
    page = decomposition_findings(checked, "explaind")
    assert page.metrics["explaind/entry_error"] == 0.0123
    said = "say nothing of a single entry (step × component): these are off by about 1.2 % of their size"
    assert said in " ".join(one.text for one in page.statements)
