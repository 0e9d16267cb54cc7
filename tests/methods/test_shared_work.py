"""Three processes leave the influence store of one, bit for bit, and each does its share of the passes.

Two processes, and what decomposes a recorded training, are in tests/end_to_end/test_processes.py.
"""

from __future__ import annotations

import pytest
from shared_work import fresh, run_all, short_methods

from tdaexp import influence
from tdaexp.runtime.launch import Team, run_together

DAMPED = ("method.relative_damping=300", "method.examples=8")
METHODS = {
    "select": ("select", "budget=0.3"),
    "full": ("full",),
    "dot": ("dot",),
    "tracin": ("tracin",),
    **short_methods(*DAMPED, "method.at_once=2", "method.queries=3"),
    "arnoldi": short_methods(*DAMPED)["arnoldi"],
    "ekfac": ("ekfac", "method.per_token=2"),
}
WORLD = 3
RELOADED = {"tracin"}  # its models are loaded on the way, so that their calls are not counted


@pytest.fixture(scope="module")
def results(compose, make_problem, tmp_path_factory):
    """Folders of stores, shares of the work, and completions: of one process and of three."""
    methods = {name: compose(f"method={method}", *more) for name, (method, *more) in METHODS.items()}
    found = []
    for world in (1, WORLD):
        folder = tmp_path_factory.mktemp(f"of{world}-")
        problem = fresh(make_problem(folder, tokens_per_batch=100, candidates=3))
        work = methods, problem, folder
        found.append(
            (folder, *(run_all(*work) if world == 1 else run_together(Team("cpu", world), {}, run_all, *work)))
        )
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_the_store_is_that_of_one_process(results, name):
    alone, shared = (influence.load(folder / f"{name}.zarr") for folder, *_ in results)
    assert alone.identical(shared)
    for variable in alone.data_vars:
        assert alone[variable].values.tobytes() == shared[variable].values.tobytes(), variable


@pytest.mark.long
@pytest.mark.parametrize("name", [*METHODS, "completions"])
def test_each_process_does_a_part_of_the_work(results, name):
    (_, one, _), (_, three, _) = results
    ((blocks, passes),) = one[name]
    assert len(three[name]) == WORLD and sum(own for own, _ in three[name]) == blocks
    assert all(0 < own < passes for _, own in three[name]) or name in RELOADED
    assert not blocks or all(0 < own < blocks for own, _ in three[name])


@pytest.mark.long
def test_every_process_has_all_completions(results):
    (_, _, (alone,)), (_, _, shared) = results
    assert shared == [alone] * WORLD and len(set(alone)) > 6
