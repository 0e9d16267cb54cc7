"""Small influence data sets with known answers."""

import numpy as np
import pytest

from tdaexp import influence
from tdaexp.metrics.selection import products_of
from tdaexp.metrics.settings import MetricSettings
from tdaexp.selection.greedy import select

COMPONENTS = ["embed", "layers.0.attn.q", "layers.0.mlp.up", "layers.1.attn.q", "layers.1.mlp.up"]
SIZES = np.array([40, 10, 20, 10, 20])


@pytest.fixture
def quick():
    return MetricSettings(bootstrap=200, folds=4, seed=3)


@pytest.fixture
def products_dataset():
    """Two query sets of 12 queries each; `layers.1.mlp.up` alone retrieves all `easy` ones, no `hard` one."""
    rng = np.random.default_rng(5)
    count = 12
    truth = np.zeros((2 * count, 3), bool)
    truth[np.arange(2 * count), rng.integers(3, size=2 * count)] = True
    dot = rng.normal(0, 0.3, (2 * count, 3, 5))
    easy = np.arange(2 * count) < count
    dot[..., 4] = np.where(truth == easy[:, None], 1.0, -1.0)
    names = [f"q{k}" for k in range(count)]
    train = np.array([[f"{'eh'[k // count]}{k}.{c}" for c in range(3)] for k in range(2 * count)], dtype=object)
    return influence.build(
        dot,
        query=names * 2,
        query_set=["easy"] * count + ["hard"] * count,
        train=train,
        truth=truth,
        bm25=np.tile([2.0, 1.0, 0.0], (2 * count, 1)),
        component=COMPONENTS,
        size=SIZES,
        query_sq=rng.uniform(1, 2, (2 * count, 5)),
        train_sq=rng.uniform(1, 2, (2 * count, 3, 5)),
        attrs={"method": "full", "label": "full", "cost": {"seconds": 2.5, "passes": 60}},
    )


def with_selection(dataset, budget, objective="accuracy"):
    """What the select method writes: a weight and an order per query set."""
    sets = list(dict.fromkeys(dataset["query_set"].values))
    weight = np.zeros((len(sets), dataset.sizes["component"]))
    order = np.full(weight.shape, -1)
    for row, name in enumerate(sets):
        part = products_of(dataset.isel(query=dataset["query_set"].values == name))
        found = select(part, dataset["size"].values, budget, objective)
        weight[row, found.chosen] = 1
        order[row, found.order] = np.arange(len(found.order))
    dims = ("query_set_name", "component")
    chosen = dataset.assign(weight=(dims, weight), order=(dims, order)).assign_coords(query_set_name=sets)
    return chosen.assign_attrs(method="select", label="select", objective=objective, budget=budget)


@pytest.fixture
def selected(products_dataset):
    """Build a selection from the products: `selected(budget, objective)`."""
    return lambda budget, objective="accuracy": with_selection(products_dataset, budget, objective)


@pytest.fixture
def select_dataset(selected):
    return selected(0.3)
