from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from tdaexp.metrics.explaind import (
    accumulated_influence,
    reconstruction,
    relative_regularisation,
    similarity,
)
from tdaexp.runtime.errors import UserError


@pytest.fixture
def store() -> xr.Dataset:
    """Two queries, three steps, two components, two outputs; small integers."""
    rng = np.random.default_rng(0)
    dims = ("query", "component", "step", "output")
    coords = {"query": ["a", "b"], "component": ["in", "out"], "step": [0, 1, 2], "output": [0, 1]}
    data = {name: (dims, rng.integers(-5, 6, (2, 2, 3, 2)).astype(float)) for name in ("influence", "regularisation")}
    pair = {
        "start": (("query", "output"), np.array([[0.0, 1.0], [2.0, 0.0]])),
        "change": (("query", "output"), np.array([[3.0, 0.0], [0.0, 1.0]])),
        "explained": (("query", "output"), np.array([[3.0, 0.0], [0.0, 2.5]])),
        "residual": (("query", "output"), np.array([[0.0, 0.0], [0.0, -1.5]])),
    }
    return xr.Dataset({**data, **pair}, coords, {"output": "logits"})


def test_sums_over_chosen_labels(store):
    values = store["influence"].values
    found = accumulated_influence(store, ["component", "output"], {"component": "out"})
    np.testing.assert_array_equal(found.values, values[:, 1].sum(-1))
    regularisation = store["regularisation"].values
    found = relative_regularisation(store, ["query", "output", "train"])
    np.testing.assert_array_equal(found.values, (-values + regularisation).sum((0, 3)))


def test_similarity_is_the_cosine(store):
    first, second = store["influence"].values[:, :, :2].reshape(2, -1)
    found = similarity(store, {"step": [0, 1]})
    np.testing.assert_allclose(found.values[0, 1], first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    np.testing.assert_allclose(np.diag(found.values), 1)


def test_reconstruction_by_hand(store):
    found = reconstruction(store)  # ends: (3, 1) and (2, 1); sums: (3, 1) and (2, 2.5)
    assert found["agreement"] == 0.5 and found["error"] == 1.5 / 4
    p, q = (np.exp(values) / np.exp(values).sum() for values in (np.array([2.0, 1.0]), np.array([2.0, 2.5])))
    np.testing.assert_allclose(found["kl"], (p * np.log(p / q)).sum() / 2)
    assert set(reconstruction(store.assign_attrs(output="loss"))) == {"error"}
    assert set(reconstruction(store.assign_coords(step=[0, 2, 3]))) == {"error"}  # these steps alone lead to no model


def test_axes_that_were_summed_are_told(store):
    summed = store.assign(influence=store["influence"].sum(["query", "output"]))
    with pytest.raises(UserError, match="axis query was summed"):
        accumulated_influence(summed, ["query"])
    with pytest.raises(UserError, match="has no 'first_moment'"):
        accumulated_influence(store, ["step"], part="first_moment")
