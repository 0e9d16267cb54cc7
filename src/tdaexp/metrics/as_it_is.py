"""What judges look at that train no model again: the explained model as it is, and what is known of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from tdaexp.gradients.passes import train_gradients
from tdaexp.metrics.settings import MetricSettings
from tdaexp.problem import Problem


@dataclass(frozen=True)
class AsItIs:
    """A problem, self-influence [N] of its training rows by label of a run, and which rows are faulty [N] (None: not
    known).

    `controls` are the labels of scores that no run gave.
    """

    problem: Problem
    settings: MetricSettings
    itself: Mapping[str, np.ndarray] = field(default_factory=dict)
    faulty: np.ndarray | None = None
    controls: frozenset[str] = frozenset()


def losses_of(problem: Problem) -> np.ndarray:
    """The loss [N] float64 in nats of every training row under the explained model, the mean over its tokens."""
    rows = train_gradients(problem, problem.map)
    values = np.zeros(len(rows))
    with torch.no_grad(), rows.ready():
        for members in rows.batches(problem.compute.tokens_per_batch):
            losses = rows.objective.losses(problem.model, rows.inputs(members), rows.loss)
            values[members] = losses.double().cpu().numpy()
    return values
