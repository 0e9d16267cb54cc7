"""What a model answers: the measurement of every query."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tdaexp.gradients.passes import query_gradients
from tdaexp.problem import Problem


def measured(problem: Problem, model: nn.Module, measurement: str, reduction: str = "mean") -> np.ndarray:
    """The measurement [Q] float64 of the problem's queries by a model with its architecture; larger = more likely."""
    queries = replace(query_gradients(problem, problem.map, reduction, measurement), model=model)
    values = np.zeros(len(queries))
    with torch.no_grad(), queries.ready():
        for members in queries.batches(problem.compute.tokens_per_batch):
            losses = queries.objective.losses(model, queries.inputs(members), queries.loss)
            values[members] = -losses.double().cpu().numpy()
    return values
