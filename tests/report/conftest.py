"""Stores of three methods on two query sets, small enough to draw in a moment."""

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.selection import products_of
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.texts import Passage
from tdaexp.selection.greedy import select

COMPONENTS = ["embed", "layers.0.attn.q", "layers.0.mlp.up", "layers.1.attn.q", "layers.1.mlp.up", "norms"]
SIZES = np.array([40, 10, 20, 10, 20, 1])
PROVENANCE = {
    "config": {"model": "toy", "method": {"budget": 0.3}},
    "versions": {"torch": "2.13", "traker": None},
    "git_commit": "abc123",
    "cost": {"gradients": 130.0, "scoring": 2.0},
}


def build(noise, **attrs):
    rng = np.random.default_rng(5)
    truth = np.zeros((20, 3), bool)
    truth[np.arange(20), rng.integers(3, size=20)] = True
    dot = rng.normal(0, 0.4, (20, 3, 6)) + truth[:, :, None] * 0.5 + noise * rng.normal(size=(20, 3, 6))
    train = np.array([[f"t{(k + c) % 20}" for c in range(3)] for k in range(20)], dtype=object)
    return influence.build(
        dot,
        query=[f"q{k}" for k in range(10)] * 2,
        query_set=["paraphrased"] * 10 + ["generated"] * 10,
        train=train,
        truth=truth,
        bm25=rng.normal(size=(20, 3)) + truth,
        component=COMPONENTS,
        size=SIZES,
        query_sq=rng.uniform(1, 2, (20, 6)),
        train_sq=rng.uniform(1, 2, (20, 3, 6)),
        attrs=attrs | PROVENANCE,
    )


@pytest.fixture(scope="session")
def full_store():
    return build(0.0, method="full", label="full")


@pytest.fixture(scope="session")
def stores(full_store):
    sets = ["paraphrased", "generated"]
    weight = np.zeros((2, 6))
    for row, name in enumerate(sets):
        part = products_of(full_store.isel(query=full_store["query_set"].values == name))
        weight[row, select(part, SIZES, 0.3).chosen] = 1
    chosen = full_store.assign(weight=(("query_set_name", "component"), weight))
    chosen = chosen.assign_coords(query_set_name=np.array(sets, dtype=object))
    chosen = chosen.assign_attrs(method="select", label="select", objective="accuracy", budget=0.3)
    projected = build(0.1, method="project", label="project", projection="srht", share=0.05)
    return {"select": chosen, "project": projected, "full": full_store}


@pytest.fixture(scope="session")
def texts():
    """`q0` has a text of its own in one set; one text tries to be markup."""
    queries = {f"q{k}": Passage(f"question number {k}", "as it was put") for k in range(10)}
    train = {f"t{k}": Passage("What was said?", f"answer number {k}") for k in range(20)}
    return {
        "query": queries | {"generated/q0": Passage("question zero", "as the model put it")},
        "train": train | {"t1": Passage("", "<script src='http://example.org/x.js'></script>")},
    }


@pytest.fixture(scope="session")
def quick():
    return MetricSettings(bootstrap=100, folds=3, top_k=2)
