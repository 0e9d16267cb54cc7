"""Which runs lie on one line along a numeric key."""

import pytest

from tdaexp.metrics.axes import axes_of


def run(store, method, **keys):
    config = {"seed": keys.pop("seed", 0), "budget": keys.pop("budget", None)}
    return store.assign_attrs(method=method, label=method, config={**config, "method": keys})


def single(stores):
    return {label: [label] for label in stores}


def test_a_line_for_each_other_combination(products_dataset):
    stores = {
        f"{method} {damping} {rank}": run(products_dataset, method, damping=damping, rank=rank)
        for method, ranks in (("ekfac", (None, 8)), ("cg", (None,)))
        for rank in ranks
        for damping in (1.0, 0.01, 0.1)
    }
    stores["dot"] = run(products_dataset, "dot")
    stores["ekfac null"] = run(products_dataset, "ekfac", damping=None, rank=None)
    (axis,) = axes_of(stores, single(stores))
    assert axis.key == "method.damping" and axis.without == ["dot", "ekfac null"]
    assert axis.lines == {
        "ekfac [method.rank=null]": [(0.01, "ekfac 0.01 None"), (0.1, "ekfac 0.1 None"), (1.0, "ekfac 1.0 None")],
        "ekfac [method.rank=8]": [(0.01, "ekfac 0.01 8"), (0.1, "ekfac 0.1 8"), (1.0, "ekfac 1.0 8")],
        "cg": [(0.01, "cg 0.01 None"), (0.1, "cg 0.1 None"), (1.0, "cg 1.0 None")],
    }


def test_a_key_that_follows_another_is_no_axis_and_seeds_are_none(products_dataset):
    stores = {
        f"{budget} {seed}": run(products_dataset, "select", budget=budget, seed=seed) for budget, seed in
        ((0.1, 0), (0.2, 0), (0.1, 1), (0.2, 1))
    }  # fmt: skip
    for one in stores.values():
        one.attrs["config"]["method"] = {"budget": one.attrs["config"]["budget"], "seed": one.attrs["config"]["seed"]}
        one.attrs["config"]["dataset"] = {"query_seed": one.attrs["config"]["seed"] + 1}
    (axis,) = axes_of(stores, single(stores))
    assert axis.key == "budget" and list(map(len, axis.lines.values())) == [2, 2]
    means = {"a": ["0.1 0", "0.1 1"], "b": ["0.2 0", "0.2 1"]}
    (axis,) = axes_of(stores, means)
    assert axis.lines == {"select": [(0.1, "a"), (0.2, "b")]}


@pytest.mark.parametrize("other", [{"damping": 0.1}, {"damping": True}, {"damping": "0.2"}])
def test_without_two_numbers_of_one_combination_there_is_no_axis(products_dataset, other):
    stores = {"a": run(products_dataset, "ekfac", damping=0.1), "b": run(products_dataset, "ekfac", **other)}
    assert axes_of(stores, single(stores)) == []
    stores["b"].attrs["method"] = "cg"
    stores["b"].attrs["config"]["method"]["damping"] = 0.5
    assert axes_of(stores, single(stores)) == []
