"""Train the models of the comparisons here, and write what each program is given (`work.py`).

python benchmarks/peers/export.py FOLDER NAME     # a name of WORKS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from work import CLASSES, TEXTS

from tdaexp.app.compose import open_composer
from tdaexp.app.job import check
from tdaexp.building.build import builder_of
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem
from tdaexp.runtime.clock import Clock
from tdaexp.selection.parts import chosen

CONF = Path(__file__).resolve().parents[2] / "conf"
DIGITS = ["dataset=digits", "dataset.query_limit=100", "candidates=all"]
WORKS = {
    "logistic": ["model=logistic", *DIGITS],
    "mlp": ["model=mlp", *DIGITS],
    "llama": [
        "model=toy_eurollm", "model.config.num_hidden_layers=4", "dataset=biographies", "dataset.people=100",
        "dataset.query_sets=[paraphrased]", "dataset.query_limit=20", "candidates=all", "trainer.fit.steps=200",
        "model.context=2048",  # bergson's batches hold at most so many tokens
    ],
}  # fmt: skip
MOMENTS = 5
"""Of a recorded training, the moments that TracIn sums over."""


def configured(options: list[str], cache: Path) -> Any:
    """The checked configuration that `attribute.py` makes of these options."""
    with open_composer("attribute", CONF) as composer:
        opened = composer.opened([*options, f"cache_dir={cache}", "logger=none"])
        return check(composer, "attribute", opened, composer.compose(opened), ("tdaexp",)).config


def problem_of(config: Any) -> Problem:
    """The problem that `attribute.py` makes of the configuration: the model is trained where it was not before."""
    return builder_of(config).problem(Clock())


def export(options: list[str], folder: Path) -> None:
    """Write the model, examples and queries of the problem that the options describe."""
    problem = problem_of(configured(options, folder / "cache"))
    texts = isinstance(problem.objective, NextToken)
    rates = [] if texts else _classifier(problem, folder)
    if texts:
        problem.model.save_pretrained(folder / "model")
        problem.loaded.tokenizer.save_pretrained(folder / "model")
    for name, examples, drawn in (("train", problem.train, _drawn(problem)), ("queries", problem.queries, None)):
        arrays = (_texts if texts else _classes)(examples, drawn)
        np.savez(folder / f"{name}.npz", ids=np.array(examples.ids), **arrays)
    counted = chosen(problem.components(), "blocks", None)
    modules = list(dict.fromkeys(part.module for one in counted.components for part in one.parts))
    about = {"kind": TEXTS if texts else CLASSES, "modules": modules, "rates": rates, "options": options}
    (folder / "work.json").write_text(json.dumps(about), encoding="utf-8")


def _classifier(problem: Problem, folder: Path) -> list[float]:
    """The module and its weights at moments of the training, whose rates are returned."""
    traced = torch.fx.symbolic_trace(problem.model)
    for node in traced.graph.nodes:
        node.type = None  # annotations are texts here, which torch.fx cannot write
    traced.recompile()
    torch.save(traced, folder / "model.pt")
    (folder / "moments").mkdir(exist_ok=True)
    moments = [] if problem.history is None else problem.history.moments(None, MOMENTS)
    for number, moment in enumerate(moments):
        torch.save(moment.load().state_dict(), folder / "moments" / f"{number}.pt")
    return [moment.rate for moment in moments]


def _drawn(problem: Problem) -> list[np.ndarray]:
    """The labels [L] that EK-FAC draws from the model for each training example, by the problem's seed."""
    objective, model = problem.objective, problem.model
    rows = (objective.batch(problem.train, [place], "sum") for place in range(len(problem.train)))
    with torch.no_grad():
        drawn = [objective.sampled(objective.outputs(model, row), row, problem.seed, None)[1][0] for row in rows]
    return [one.numpy() for one in drawn]


def _classes(examples: Any, drawn: list[np.ndarray] | None) -> dict[str, np.ndarray]:
    found = {"inputs": examples.inputs.numpy(), "targets": examples.targets.numpy()}
    return found if drawn is None else {**found, "drawn": np.concatenate(drawn)}


def _texts(examples: Any, drawn: list[np.ndarray] | None) -> dict[str, np.ndarray]:
    """Tokens up to the last one that predicts, what each is to predict, and where that carries loss."""
    last = [int(np.flatnonzero(one.loss_mask[1:])[-1]) + 1 for one in examples]
    names = ("inputs", "targets", "weights", *(() if drawn is None else ("drawn",)))
    found = {name: np.zeros((len(examples), max(last)), np.int64) for name in names}
    for row, (one, stop) in enumerate(zip(examples, last, strict=True)):
        found["inputs"][row, :stop] = one.tokens[:stop]
        found["targets"][row, :stop] = one.tokens[1 : stop + 1]
        found["weights"][row, :stop] = one.loss_mask[1 : stop + 1]
        if drawn is not None:
            found["drawn"][row, np.flatnonzero(found["weights"][row])] = drawn[row]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    export(WORKS[sys.argv[2]], Path(sys.argv[1]) / sys.argv[2])
