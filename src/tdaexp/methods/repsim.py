"""Representation similarity: the cosine of two examples' hidden states, without any gradient.

Source: the RepSim baseline of Bao et al. 2025 and of earlier fact-tracing work. Sign: closer = higher. Fills query and
train. Cost: one forward pass per example.

With two training stages the training examples' states are the pre-trained model's and the queries' the fine-tuned one's
(Bao et al. 2025, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr

from tdaexp.data.classes import texts_alone
from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.methods.base import Method
from tdaexp.methods.study import Study
from tdaexp.models.forward import hidden_states
from tdaexp.runtime import ranks
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track
from tdaexp.runtime.shrink import Shrinking, two

POOLINGS = ("mean", "last")


@dataclass
class RepSim(Method):
    """Keys: `layer` (index into the hidden states, -1 = after the last block), `pooling` over an example's tokens
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

    def attribute(self, study: Study) -> xr.Dataset:
        """Cosine of pooled hidden states for every candidate pair."""
        texts = texts_alone(study.queries) if study.classes else study.queries
        queries = self.states(study.after("finetuned"), texts)
        train = self.states(study.after("pretrained"), study.train)
        return study.label(np.einsum("qd,qcd->qc", queries, train[study.pairs]))

    def states(self, study: Study, examples: Examples) -> np.ndarray:
        """Unit-length pooled hidden states [N, d] float32, in the examples' order; the processes share the batches."""
        model, device = study.loaded.model, study.compute.device
        depth = model.config.num_hidden_layers
        if not -depth - 1 <= self.layer <= depth:
            raise unknown("layer", str(self.layer), [f"{-depth - 1}…{depth}"], "method.layer")
        by_length = np.argsort(examples.lengths, kind="stable").tolist()
        batches = token_budget_batches(examples.lengths, by_length, study.compute.tokens_per_batch)
        states, me = np.zeros((len(examples), model.config.hidden_size), dtype=np.float32), ranks.current()
        later = Deferred()

        def run(members: list[int]) -> torch.Tensor:
            inputs = collate([examples[i] for i in members]).to(device)
            with torch.no_grad():
                found = hidden_states(model, inputs.tokens, inputs.attention)
            return self._pool(found[self.layer].float(), inputs.attention)

        def take(batch: list[int], pooled: np.ndarray) -> None:
            for row, index in enumerate(batch):
                if not np.isfinite(pooled[row]).all():
                    raise UserError(
                        f"example '{examples[index].id}': its hidden state in layer {self.layer} is not finite; "
                        "check the checkpoint, or try trainer.precision=float32"
                    )
            states[batch] = pooled

        compute = Shrinking(run, two, torch.cat)
        for batch in track(batches[me.rank :: me.world], "hidden states", len(batches), each=me.world):
            later.add(partial(take, batch), compute(batch))
        later.flush()
        ranks.together(torch.from_numpy(states))  # zeros where another process computes
        return states / np.linalg.norm(states, axis=1, keepdims=True).clip(min=1e-12)

    def _pool(self, hidden: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """[B, T, d] and [B, T] to [B, d]."""
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), attention.sum(1) - 1]
        weight = attention.unsqueeze(-1).float()
        return (hidden * weight).sum(1) / weight.sum(1)
