"""Representation similarity: the cosine of two examples' hidden states, without any gradient.

Source: the RepSim baseline of Bao et al. 2025 and of earlier fact-tracing work. With h the hidden state of an
example,

    s(z, q) = h(q)·h(z) / (|h(q)| |h(z)|)

Sign: closer = higher. Fills query and train. Cost: one forward pass per example.

With two training stages the training examples' states are the pre-trained model's and the queries' the fine-tuned one's
(Bao et al. 2025, section 5.3).

Scale: a cosine, from -1 to 1. Limits: likeness, not influence: a row that taught the contrary is as near. One layer and
one pooling decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from tdaexp.data.classes import texts_alone
from tdaexp.gradients.states import hidden_states
from tdaexp.methods.base import Method
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import unknown
from tdaexp.runtime.rehearsal import arithmetic, repeated
from tdaexp.runtime.rows import runs

POOLINGS = ("mean", "last")


@dataclass
class RepSim(Method):
    """Keys: `layer` (index into the hidden states, -1 = what the last layer reads), `pooling` over an example's tokens
    (`last`: the last token's state, `mean`: the average).
    """

    layer: int = -1
    pooling: str = "last"

    def __post_init__(self) -> None:
        """Refuse an unknown pooling."""
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS, "method.pooling")

    @property
    def both_stages(self) -> bool:
        """Yes: each side's states are those of its own stage."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Cosine of pooled hidden states for every candidate pair."""
        texts = texts_alone(problem.queries) if problem.classes else problem.queries
        queries = self.states(problem.after("finetuned"), texts)
        own = problem.classes and problem.finetuned is None
        train = self.states(problem.after("pretrained"), texts_alone(problem.train) if own else problem.train)
        row_bytes = problem.pairs.shape[1] * train[0].nbytes
        values = np.empty(problem.pairs.shape, dtype=train.dtype)
        arithmetic(2.0 * values.size * train.shape[1])
        for run in repeated(list(runs(len(queries), row_bytes))):
            values[run] = np.einsum("qd,qcd->qc", queries[run], train[problem.pairs[run]])
        return problem.label(values)

    def states(self, problem: Problem, examples: Any) -> np.ndarray:
        """Unit-length pooled hidden states [N, d] float32, in the examples' order; the processes share the batches."""
        found = dict(hidden_states(problem, examples, self.layer, self._pool))
        width = max(ranks.gathered(max((len(one) for one in found.values()), default=0)))
        states = np.zeros((len(examples), width), dtype=np.float32)
        for number, pooled in found.items():
            states[number] = pooled.float().cpu().numpy()
        ranks.together(torch.from_numpy(states))  # zeros where another process computes
        return np.asarray(states / np.linalg.norm(states, axis=1, keepdims=True).clip(min=1e-12))

    def _pool(self, states: torch.Tensor, real: torch.Tensor) -> list[torch.Tensor]:
        """[B, T, d] and [B, T] to B times [d]."""
        states = states.float()
        if self.pooling == "last":
            last = send(real.sum(1) - 1, states.device)
            return list(states[torch.arange(len(states), device=states.device), last])
        weight = send(real.unsqueeze(-1), states.device).float()
        return list((states * weight).sum(1) / weight.sum(1))
