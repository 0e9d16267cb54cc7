"""What an answer costs: overhead, gradients and scoring, whichever run or process filled the stores."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tdaexp.methods.study import Study
from tdaexp.runtime.blockstore import BlockStore, stored_seconds

FEW = ["method.relative_damping=300", "method.queries=2", "method.components=[layers.0.mlp.up]", "method.examples=6"]
METHODS = {
    "cg": [*FEW, "method.deflate=4", "method.iterations=3"],
    "lissa": [*FEW, "method.depth=4", "method.batch_size=3"],
    "arnoldi": [*FEW, "method.steps=8", "method.rank=4"],
    "ekfac": [],
    "trak": ["method.dimensions=4"],
    "dot": [],
}


def cost_of(study: Study, method) -> dict[str, float]:
    start = time.monotonic()
    method.attribute(study)
    return study.split_cost({"scoring": time.monotonic() - start})


@pytest.mark.parametrize("name", METHODS)
def test_a_cached_answer_costs_what_it_cost_when_it_was_made(name, make_study, compose, tmp_path):
    method = compose(f"method={name}", *METHODS[name])
    made = make_study(tmp_path)
    first = cost_of(made, method)
    found = make_study(tmp_path)
    again = cost_of(found, method)
    assert set(made.stores) == set(found.stores) and made.overhead == found.overhead
    for stage in ("overhead", "gradients"):
        assert again[stage] == first[stage] > 0 or (stage, name) == ("overhead", "dot")
    assert min(first.values()) >= 0 and min(again.values()) >= 0


@pytest.mark.parametrize("name", ["cg", "lissa"])
def test_what_serves_all_queries_is_overhead(name, make_study, compose, tmp_path):
    study = make_study(tmp_path)
    compose(f"method={name}", *METHODS[name]).attribute(study)
    assert {path.parent.name for path in study.overhead} == {"trace", {"cg": "arnoldi", "lissa": "scale"}[name]}
    assert {path.parent.name for path in set(study.stores) - study.overhead} == {"solutions", "inverse"}


def test_select_on_a_method_and_the_method_alone_cost_the_same(make_study, compose, tmp_path):
    keys = [text.replace("method.", "method.on.") for text in METHODS["cg"]]
    first = cost_of(make_study(tmp_path), compose("method=select", "method@method.on=cg", "budget=1", *keys))
    again = cost_of(make_study(tmp_path), compose("method=cg", *METHODS["cg"]))
    assert (again["overhead"], again["gradients"]) == (first["overhead"], first["gradients"])


def test_a_store_that_is_filled_while_another_is_computed_has_its_own_time(make_study, tmp_path):
    study = make_study(tmp_path)
    outer = BlockStore(study.store("outer", by=BlockStore), {"x": ((1,), "float64")}, [slice(0, 1)])
    start = time.monotonic()
    with outer.pending():
        inner = BlockStore(study.training_store("inner", by=BlockStore), {"x": ((1,), "float64")}, [slice(0, 1)])
        with inner.pending():
            time.sleep(0.2)
            inner.write(0, {"x": np.ones(1)})
        outer.write(0, {"x": np.ones(1)})
    cost = study.split_cost({"scoring": time.monotonic() - start})
    assert cost["overhead"] >= 0.2 > cost["gradients"] > 0 and cost["scoring"] >= 0


def test_blocks_of_another_process_take_nothing_from_this_run(make_study, tmp_path):
    """A job of a sweep waits for another one, which began long before it."""
    study = make_study(tmp_path)
    path = study.store("shared", by=BlockStore)
    other = BlockStore(path, {"x": ((1,), "float64")}, [slice(0, 1)])
    other.group["seconds"][0], other.done[0] = 100.0, True
    assert stored_seconds(path) == 100.0
    cost = study.split_cost({"scoring": 1.0})
    assert cost["gradients"] == 100.0 and cost["scoring"] == pytest.approx(1.0)
