"""Tail-patch: how much likelier a query's answer is after one more optimiser step on a proponent.

Source: Chang et al. 2024 (TrackStar), section 4.2. From the explained weights θ, for each of the k best rows z of query
q,

    log p(q; θ - η ∇ℓ(z; θ)) - log p(q; θ)        in nats, positive where the step makes the answer likelier

with ℓ the mean loss of the row's tokens and p the probability of the whole answer; the mean over the k rows and over
the queries. The step is plain gradient descent, whatever trained the model, at a stated rate η: no state of the
optimiser, no weight decay. Of a model with an adapter only its matrices move. Steps on random rows are the control. A
step is on one row alone, so that it serves all methods and queries: one gradient for each distinct row, no retraining.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import train_gradients
from tdaexp.metrics.as_it_is import AsItIs
from tdaexp.metrics.intervals import bootstrap
from tdaexp.metrics.measured import measured
from tdaexp.metrics.retrained import RANDOM, Judged, best_rows, rows_by_set, some_queries
from tdaexp.models.adapted import is_adapted, is_matrix
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track

MEASURED = "answer_log_probability"


def judge_tail_patch(evidence: AsItIs, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """The mean gain by each method's `scores` [Q, N] (NaN: a pair that it did not score), in each query set.

    Intervals are over queries. Errors (UserError): no query that every method answers; weights that round a step away.
    """
    settings, problem = evidence.settings.tail_patch, evidence.problem
    assert settings is not None
    if problem.compute.dtype not in (torch.float32, torch.float64):
        raise UserError(
            "metric.tail_patch: a small step is lost where weights are rounded to 16 bits; explain the model with "
            "trainer.precision=float32"
        )
    methods = {label: values for label, values in scores.items() if label not in evidence.controls}
    asked = some_queries(problem, methods, settings.queries, evidence.settings.seed)
    if not len(asked):
        raise UserError("metric.tail_patch: no query has scores of every run; name runs of the same queries (runs=[…])")
    generator, count = np.random.default_rng([evidence.settings.seed, len(problem.train)]), len(problem.train)
    best = {label: [best_rows(values[query], settings.top_k) for query in asked] for label, values in methods.items()}
    if RANDOM not in best:
        drawn = generator.choice(count, min(settings.random, count), replace=False)
        best[RANDOM] = [drawn] * len(asked)
    some = problem.of_queries(asked.tolist())
    rows = np.unique(np.concatenate([one for mine in best.values() for one in mine]))
    gains = dict(zip(rows.tolist(), steps(some, rows.tolist(), settings.rate), strict=True))
    found = []
    for label, mine in best.items():
        values = np.array([np.mean([gains[int(row)][place] for row in one]) for place, one in enumerate(mine)])
        for name, places in rows_by_set(some).items():
            (one,) = bootstrap(values[None, places], evidence.settings)
            found.append(Judged(label, name, "tail_patch", one, len(places)))
    return found


def steps(problem: Problem, rows: Sequence[int], rate: float) -> Iterator[np.ndarray]:
    """The queries' gain [Q] in nats by a step on each of the training rows."""
    before = measured(problem, problem.model, MEASURED)
    for row in track(rows, "tail-patch: steps on a row", len(rows)):
        with stepped(problem, row, rate):
            yield measured(problem, problem.model, MEASURED) - before


@contextmanager
def stepped(problem: Problem, row: int, rate: float) -> Iterator[None]:
    """Inside the block the model's weights are a step further on one row; afterwards they are as before, to the bit."""
    moved = trained_parameters(problem)
    before = [parameter.detach().clone() for parameter in moved.values()]
    slopes = gradients(problem, row, moved)
    with torch.no_grad():
        for parameter, gradient in zip(moved.values(), slopes, strict=True):
            parameter.sub_(gradient, alpha=rate)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(moved.values(), before, strict=True):
                parameter.copy_(old)


def trained_parameters(problem: Problem) -> dict[str, Tensor]:
    """What a training of the model moves: all its parameters, or the matrices of its adapter."""
    adapted = is_adapted(problem.model)
    return {name: one for name, one in problem.model.named_parameters() if is_matrix(name) or not adapted}


def gradients(problem: Problem, row: int, moved: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of the row's mean loss with respect to the named parameters, zero where it does not depend on one."""
    one = replace(train_gradients(problem, problem.map), examples=problem.train.select([row]))
    with one.ready():
        inputs = one.inputs([0])
        try:
            for parameter in moved.values():
                parameter.requires_grad_(True)
            (loss,) = one.objective.losses(problem.model, inputs, one.loss)
            found = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
        finally:
            for parameter in moved.values():
                parameter.requires_grad_(False)
    return [torch.zeros_like(own) if one is None else one for own, one in zip(moved.values(), found, strict=True)]
