"""What an answer costs: overhead, gradients and scoring, whichever run or process filled the stores."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tdaexp.problem import Problem
from tdaexp.runtime.block_files import stored_seconds
from tdaexp.runtime.blockstore import BlockStore

FEW = ["method.relative_damping=300", "method.queries=2", "method.components=[layers.0.mlp.up]", "method.examples=6"]
METHODS = {
    "cg": [*FEW, "method.arnoldi_steps=4", "method.iterations=3"],
    "astra": [*FEW, "method.steps=4", "method.batch_size=3"],
    "lissa": [*FEW, "method.depth=4", "method.batch_size=3"],
    "arnoldi": [*FEW, "method.steps=8", "method.rank=4"],
    "ekfac": [],
    "trak": ["method.dimensions=4"],
    "logra": ["method.dimensions=4"],
    "datainf": [],
    "dot": [],
}
OVERHEAD = {"cg": {"arnoldi"}, "astra": {"factors", "rate"}, "lissa": {"scale"}}


def cost_of(problem: Problem, method) -> dict[str, float]:
    start = time.monotonic()
    method.attribute(problem)
    return problem.split_cost({"scoring": time.monotonic() - start})


@pytest.mark.parametrize("name", METHODS)
def test_a_cached_answer_costs_what_it_cost_when_it_was_made(name, make_problem, compose, tmp_path):
    method = compose(f"method={name}", *METHODS[name])
    made = make_problem(tmp_path)
    first = cost_of(made, method)
    found = make_problem(tmp_path)
    again = cost_of(found, method)
    assert set(made.stores) == set(found.stores) and made.overhead == found.overhead
    for stage in ("overhead", "gradients"):
        assert again[stage] == first[stage] > 0 or (stage, name) == ("overhead", "dot")
    assert min(first.values()) >= 0 and min(again.values()) >= 0


@pytest.mark.parametrize("name", OVERHEAD)
def test_what_serves_all_queries_is_overhead(name, make_problem, compose, tmp_path):
    problem = make_problem(tmp_path)
    compose(f"method={name}", *METHODS[name]).attribute(problem)
    assert {path.parent.name for path in problem.overhead} == OVERHEAD[name] | {"trace"}
    assert {path.parent.name for path in set(problem.stores) - problem.overhead} == {"solutions", "inverse"}


def test_select_on_a_method_and_the_method_alone_cost_the_same(make_problem, compose, tmp_path):
    keys = [text.replace("method.", "method.on.") for text in METHODS["cg"]]
    first = cost_of(make_problem(tmp_path), compose("method=select", "method@method.on=cg", "budget=1", *keys))
    again = cost_of(make_problem(tmp_path), compose("method=cg", *METHODS["cg"]))
    assert (again["overhead"], again["gradients"]) == (first["overhead"], first["gradients"])


def test_a_store_that_is_filled_while_another_is_computed_has_its_own_time(make_problem, tmp_path):
    problem = make_problem(tmp_path)
    outer = BlockStore(problem.store("outer", by=BlockStore), {"x": ((1,), "float64")}, [slice(0, 1)])
    start = time.monotonic()
    with outer.pending():
        inner = BlockStore(problem.training_store("inner", by=BlockStore), {"x": ((1,), "float64")}, [slice(0, 1)])
        with inner.pending():
            time.sleep(0.2)
            inner.write(0, {"x": np.ones(1)})
        outer.write(0, {"x": np.ones(1)})
    cost = problem.split_cost({"scoring": time.monotonic() - start})
    assert cost["overhead"] >= 0.2 > cost["gradients"] > 0 and cost["scoring"] >= 0


def test_blocks_of_another_process_take_nothing_from_this_run(make_problem, tmp_path):
    """A job of a sweep waits for another one, which began long before it."""
    problem = make_problem(tmp_path)
    path = problem.store("shared", by=BlockStore)
    other = BlockStore(path, {"x": ((1,), "float64")}, [slice(0, 1)])
    other.group["seconds"][0], other.done[0] = 100.0, True
    assert stored_seconds(path) == 100.0
    cost = problem.split_cost({"scoring": 1.0})
    assert cost["gradients"] == 100.0 and cost["scoring"] == pytest.approx(1.0)
