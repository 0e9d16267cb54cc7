"""Centred kernel alignment (CKA) of two examples, without any curvature.

Source: Kornblith et al. 2019; a baseline of Bao et al. 2025, section 5.1, which uses it on gradients. Linear CKA of X
[n, p] and Y [n, q], columns centred over the n samples: |XᵀY|² / (|XᵀX| |YᵀY|), Frobenius norms; between 0 and 1.

* `gradients`: what the paper's program computes. The whole gradient of each example is one row and is not centred, so
  that CKA is the squared cosine of the gradients: it cannot tell a helpful example from a harmful one.
* `states`: the hidden states after block `layer`. The hidden units are the samples and the tokens of each example its
  features, so that examples of different lengths compare; the order of tokens does not count.

Sign: more alike = higher, never negative. Fills query and train. Cost: as `full`, whose stored products it shares, or a
forward pass per example and T T' d multiply-adds per pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr

from tdaexp import influence
from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.gradients.capture import REDUCTIONS
from tdaexp.methods.base import Method
from tdaexp.methods.full import Full
from tdaexp.methods.study import Study
from tdaexp.runtime import ranks
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track
from tdaexp.runtime.shrink import Shrinking, two

COMPARED = ("gradients", "states")


@dataclass
class CKA(Method):
    """Keys: `of` (`gradients`, as in the paper, or `states`), `layer` of the states (-1 = after the last block),
    `components` and `reduction` of the gradients, as for `full`.
    """

    of: str = "gradients"
    layer: int = -1
    components: list[str] | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for key, choices in (("of", COMPARED), ("reduction", REDUCTIONS)):
            if getattr(self, key) not in choices:
                raise unknown(key, getattr(self, key), choices, f"method.{key}")

    @property
    def label(self) -> str:
        """Name, and what is compared if it is not gradients."""
        return "cka" if self.of == "gradients" else f"cka ({self.of})"

    def attribute(self, study: Study) -> xr.Dataset:
        """The alignment of every candidate pair."""
        if self.of == "gradients":
            products = Full(self.components, self.reduction).attribute(study)
            return study.label(influence.scores(products).values ** 2)
        values, me = np.zeros(study.pairs.shape), ranks.current()
        mine = np.array_split(np.argsort(study.queries.lengths, kind="stable"), me.world)[me.rank]
        queries = self._states(study, study.queries, mine)
        train = self._states(study, study.train, np.unique(study.pairs[mine]))
        for row in mine:
            for column in np.flatnonzero(study.pairs[row] >= 0):
                values[row, column] = linear_cka(queries[row], train[study.pairs[row, column]])
        ranks.together(torch.from_numpy(values))  # zeros where another process computes
        return study.label(values)

    def _states(self, study: Study, examples: Examples, wanted: np.ndarray) -> dict[int, torch.Tensor]:
        """Hidden states [d, T] of the wanted examples and those in their batches, without padding, float32 or float64.

        Batches do not depend on what is wanted, so that neither do the states.
        """
        model, depth = study.loaded.model, study.loaded.model.config.num_hidden_layers
        if not -depth - 1 <= self.layer <= depth:
            raise unknown("layer", str(self.layer), [f"{-depth - 1}…{depth}"], "method.layer")
        wide = torch.float64 if model.dtype == torch.float64 else torch.float32
        order = np.argsort(examples.lengths, kind="stable").tolist()
        every = token_budget_batches(examples.lengths, order, study.compute.tokens_per_batch)
        batches = [batch for batch in every if np.isin(batch, wanted).any()]
        found: dict[int, torch.Tensor] = {}
        later = Deferred()

        def check(members: list[int], finite: np.ndarray) -> None:
            if not finite.all():
                raise UserError(
                    f"example '{examples[members[int(finite.argmin())]].id}': its hidden states in layer {self.layer} "
                    "are not finite; check the checkpoint, or try trainer.precision=float32"
                )

        def run(members: list[int]) -> list[torch.Tensor]:
            inputs = collate([examples[index] for index in members]).to(study.compute.device)
            with torch.no_grad():
                output = model(inputs.tokens, attention_mask=inputs.attention, output_hidden_states=True)
            return list(output.hidden_states[self.layer])

        compute = Shrinking(run, two, lambda parts: [one for part in parts for one in part])
        for members in track(batches, "hidden states", len(batches)):
            for index, states in zip(members, compute(members), strict=True):
                found[index] = states[: examples[index].length].T.to(wide)
            finite = torch.stack([torch.isfinite(found[index]).all() for index in members])
            later.add(partial(check, members), finite)
        later.flush()
        return found


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Linear CKA of x [n, p] and y [n, q] over n samples; 0 where one of them does not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(x.T @ y) ** 2 / norms) if norms > 0 else 0.0
