"""Centred kernel alignment (CKA) of two examples, without any curvature.

Source: Kornblith et al. 2019; a baseline of Bao et al. 2025, section 5.1, which uses it on gradients. Linear CKA of X
[n, p] and Y [n, q], columns centred over the n samples, Frobenius norms:

    s(X, Y) = |XᵀY|² / (|XᵀX| |YᵀY|)

* `gradients`: what the paper's program computes. The whole gradient of each example is one row and is not centred, so
  that CKA is the squared cosine of the gradients: it cannot tell a helpful example from a harmful one.
* `states`: the hidden states after block `layer`. The hidden units are the samples and the tokens of each example its
  features, so that examples of different lengths compare; the order of tokens does not count.

Sign: more alike = higher, never negative. Fills query and train. Cost: as `full`, whose stored products it shares, or a
forward pass per example and T T' d multiply-adds per pair.

Scale: from 0 to 1. Limits: it has no sign, and tells nothing of a component.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.gradients.states import hidden_states
from tdaexp.methods.base import Method
from tdaexp.methods.full import Full
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.errors import unknown
from tdaexp.runtime.rehearsal import repeated
from tdaexp.selection.parts import check_part, part_note, with_notes

COMPARED = ("gradients", "states")


@dataclass
class CKA(Method):
    """Keys: `of` (`gradients`, as in the paper, or `states`), `layer` of the states (-1 = after the last block),
    `part`, `components` and `reduction` of the gradients, as for `full`.
    """

    of: str = "gradients"
    layer: int = -1
    part: str | None = None
    components: list[str] | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        if self.of not in COMPARED:
            raise unknown("of", self.of, COMPARED, "method.of")
        check_part(self.part, self.reduction)

    @property
    def label(self) -> str:
        """Name, what is compared if it is not gradients, and of which part of the model if it is not the whole."""
        gradients = self.of == "gradients"
        return with_notes(self.name, [part_note(self.part, self.components, "all") if gradients else self.of])

    def attribute(self, problem: Problem) -> xr.Dataset:
        """The alignment of every candidate pair."""
        if self.of == "gradients":
            products = Full(self.part, self.components, self.reduction).attribute(problem)
            return problem.label(
                np.concatenate([influence.scores(one).values ** 2 for one in influence.blocks(products)])
            )
        pairs, me = problem.pairs, ranks.current()
        values = np.zeros(pairs.shape)
        lengths = problem.objective.lengths(problem.model, problem.queries)
        mine = np.array_split(np.argsort(lengths, kind="stable"), me.world)[me.rank]
        queries = dict(hidden_states(problem, problem.queries, self.layer, _features, mine))
        train = dict(hidden_states(problem, problem.train, self.layer, _features, np.unique(pairs[mine])))
        for row in repeated(mine.tolist()):
            for column in repeated(np.flatnonzero(pairs[row] >= 0).tolist()):
                values[row, column] = linear_cka(queries[row], train[pairs[row, column]])
        ranks.together(torch.from_numpy(values))  # zeros where another process computes
        return problem.label(values)


def _features(states: torch.Tensor, real: torch.Tensor) -> list[torch.Tensor]:
    """States [B, T, d] as [d, T] of each example, without padding, float32 or float64."""
    wide = states.to(accumulation_dtype(states.dtype))
    return [one[: int(count)].T for one, count in zip(wide, real.sum(1).tolist(), strict=True)]


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA of x [n, p] and y [n, q] over n samples; 0 where one of them does not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(x.T @ y) ** 2 / norms) if norms > 0 else 0.0
