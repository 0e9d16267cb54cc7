"""Which methods run on which kinds of problem: the table of docs/methods.md, made and checked here.

UPDATE_DOCS=1 python -m pytest tests/methods/test_kinds.py
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_problem import PARAPHRASED, TRAIN, course, made_up
from torch import nn

from tdaexp import influence
from tdaexp.building.own import own_problem
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorExamples
from tdaexp.history import Course, Moment
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
TRAININGS = {"explaind", "magic"}  # need a training, which the page says in words
METHODS = sorted({file.stem for file in (PAGE.parents[1] / "conf" / "method").glob("*.yaml")} - TRAININGS)
SMALL = {
    "cg": ["method.queries=null", "method.iterations=2", "method.examples=4", "method.preconditioner=ekfac"],
    "astra": ["method.queries=null", "method.steps=2", "method.batch_size=4", "method.examples=4"],
    "lissa": ["method.queries=null", "method.depth=2", "method.batch_size=4"],
    "arnoldi": ["method.steps=2", "method.rank=1"],
    "trak": ["method.dimensions=4"],
    "source": ["method.segments=1"],
    **{name: ["method.dimensions=4"] for name in ("logra", "trackstar")},
    **{name: ["budget=0.5"] for name in ("select", "select_fidelity", "project_paper")},
}


class Kept:
    """A history of one moment: the model as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def moments(self, steps, count) -> list[Moment]:
        return [Moment(1, 0.1, "kept", lambda: self.model, lambda: made_up(self.model, 1))]

    def course(self) -> Course:
        return course(self.model, 1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def classifier(cache: Path) -> Problem:
    model, objective = network(), Classes()
    whole = TensorExamples([f"e{k}" for k in range(14)], torch.randn(14, 6).double(), torch.arange(14) % 3)
    train, queries = whole.select(range(10)), whole.select(range(10, 14))
    pairs = np.tile(np.arange(10), (4, 1))
    return Problem(
        model=model,
        identity="classifier",
        map=discovered(model, lambda: model(train.inputs[:2]), 2),
        objective=objective,
        train=train,
        queries=queries,
        query_set=["test"] * 4,
        candidates=Candidates(pairs, np.full(pairs.shape, np.nan)),
        truth=(queries.targets[:, None] == train.targets).numpy(),
        compute=Compute(torch.device("cpu"), torch.float64, 64, 1.0),
        cache=cache,
        seed=0,
        history=Kept(model),
    )


def own(cache: Path) -> Problem:
    torch.manual_seed(1)
    rows = [(torch.randn(6).double(), torch.randn(3).double()) for _ in range(14)]
    model = network()

    def loss(module: nn.Module, batch) -> torch.Tensor:
        return (module(batch[0]) - batch[1]).square().sum(1)

    return replace(own_problem(model, rows[:10], rows[10:], loss=loss, cache=cache), history=Kept(model))


@pytest.fixture
def problems(make_problem, tmp_path) -> dict[str, Problem]:
    two = make_problem(tmp_path / "texts", TRAIN[:6], {"paraphrased": PARAPHRASED[:2]}, candidates=3)
    return {
        "texts": two.after("pretrained"),
        "texts, two stages": two,
        "classifier": classifier(tmp_path / "classes"),
        "module and loss of your own": own(tmp_path / "own"),
    }


def answer(method, problem: Problem) -> str:
    """`yes`, or why not."""
    try:
        dataset = method.attribute(problem if method.both_stages else problem.after("finetuned"))
    except UserError as error:
        return str(error)
    values = influence.scores(dataset).values
    assert values.shape == problem.pairs.shape or "queries" in vars(method), method.name
    assert np.isfinite(values[: len(problem.pairs)][problem.pairs[: len(values)] >= 0]).all(), method.name
    return "yes"


def table(problems: dict[str, Problem], compose) -> str:
    rows, reasons = [], {}
    for name in METHODS:
        cells = []
        for problem in problems.values():
            found = answer(compose(f"method={name}", *SMALL.get(name, [])), problem)
            number = None if found == "yes" else reasons.setdefault(found, len(reasons) + 1)
            cells.append("yes" if number is None else f"no ({number})")
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    head = f"| method | {' | '.join(problems)} |\n|---{'|---' * len(problems)}|\n"
    why = "".join(f"{number}. {reason}\n" for reason, number in reasons.items())
    return f"{head}{chr(10).join(rows)}\n\n{why}"


@pytest.mark.long
def test_the_page_says_what_runs_where(problems, compose):
    made = table(problems, compose)
    begin, end = "<!-- made by tests/methods/test_kinds.py -->\n\n", "\n<!-- end -->\n"
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(begin)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(before + begin + made + end + rest.split(end)[1], encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8").split(begin)[1].split(end)[0] == made
