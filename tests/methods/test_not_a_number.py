"""An example whose gradient is not a number is named, whichever method meets it and in whichever process."""

from __future__ import annotations

import numpy as np
import pytest
from shared_work import break_example, fresh, run_broken, short_methods

from tdaexp.runtime.errors import UserError
from tdaexp.runtime.launch import Team, run_together

METHODS = {"select": ("select", "budget=0.3")} | short_methods("method.damping=1", "method.examples=null")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("side", ["train", "query"])
def test_the_example_is_named(name, side, compose, make_problem, tmp_path):
    method, *more = METHODS[name]
    problem = fresh(make_problem(tmp_path, tokens_per_batch=200, candidates=3))
    broken = "t3" if side == "train" else "p7"
    assert side == "query" or (problem.pairs == problem.train.ids.index(broken)).any()
    with pytest.raises(UserError, match=f"example '{broken}'.* (not finite|is nan)") as error:
        compose(f"method={method}", *more).attribute(break_example(problem, broken))
    assert "\n" not in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize("end", ["first", "last"])
def test_also_by_one_of_several_processes(end, compose, make_problem, tmp_path):
    """The shortest example is in the first process's share, the longest in the other's."""
    problem = fresh(make_problem(tmp_path, tokens_per_batch=100, candidates=3))
    order = np.argsort(problem.train.lengths, kind="stable")
    broken = problem.train.ids[order[0 if end == "first" else -1]]
    method = compose("method=project", "budget=0.3")
    with pytest.raises(UserError, match=f"example '{broken}': the gradient of component .* is nan"):
        run_together(Team("cpu", 2), {}, run_broken, method, problem, broken)
