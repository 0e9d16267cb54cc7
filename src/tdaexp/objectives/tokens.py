"""Predicting the next token: a causal language model over tokenised texts.

Batches are padded on the right and attention is causal: no real position sees the padding, so no attention mask is
passed (which lets fused attention kernels run), and padding carries no loss. Logits are computed only at the positions
that predict a token with loss, where that gives the model's own numbers (`models.forward`), and nothing behind an
example's last one is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.examples import Batch, Example, Examples, collate
from tdaexp.models.forward import hidden_states, runs_whole
from tdaexp.models.sharded import logits_at
from tdaexp.objectives.base import CONTRASTED, Inputs, Objective, Reach, check_layer, check_reduction
from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class NextToken(Objective[Examples]):
    """The loss of a text is that of its tokens with loss, each predicted from those before it.

    A classifier of texts is asked the same way (`data.classes`): a text's class stands where the next token would. Of a
    query with a rejected answer the loss is the difference: that of the wanted answer minus that of the other, each in
    its own text, so that its measurement is how much likelier the wanted one is. In a list that has such queries every
    example is two rows; the second row of another example counts nothing.
    """

    pad_id: int = 0

    def prepare(self, model: nn.Module) -> None:
        """Whether logits at chosen positions alone are the model's own (`models.forward`)."""
        runs_whole(model)

    def check(self, examples: Examples, members: Sequence[int], what: str) -> None:
        """Refuse texts without any token to predict."""
        check_losses([examples[index] for index in members], what)

    def lengths(self, model: nn.Module, examples: Examples) -> np.ndarray:
        """Tokens, and of two rows those of both."""
        if not examples.contrastive:
            return examples.lengths
        return CONTRASTED * np.array([max(row.length for row, _ in two_rows(one)) for one in examples], dtype=np.int64)

    def reach(self, model: nn.Module, examples: Examples) -> Reach:
        """Up to the last predicting position, and all predicting ones; of a model that runs whole all below, too."""
        if examples.contrastive:
            rows = self.reach(model, Examples([row for one in examples for row, _ in two_rows(one)]))
            return Reach(*(CONTRASTED * side.reshape(-1, CONTRASTED).max(1) for side in (rows.below, rows.at_loss)))
        predicted = [np.flatnonzero(one.loss_mask[1:]) + 1 for one in examples]
        below = np.array([one[-1] for one in predicted], dtype=np.int64)
        whole = runs_whole(model)
        return Reach(below, below if whole else np.array([len(one) for one in predicted]))

    def batch(self, examples: Examples, members: Sequence[int], reduction: str = "mean") -> Inputs:
        """Tokens up to the last one that predicts."""
        chosen, signs = [examples[index] for index in members], None
        rows = chosen
        if examples.contrastive:
            both = [two for one in chosen for two in two_rows(one)]
            rows = [row for row, _ in both]
            signs = torch.tensor([sign for _, sign in both], dtype=torch.float64, device="cpu")
        batch = collate(rows, self.pad_id)
        positions, targets, weights = loss_positions(batch, reduction)
        tokens = batch.tokens[:, : int(positions.numpy().max()) + 1]
        return Inputs([one.id for one in chosen], tokens, targets, weights, positions, signs)

    def outputs(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Logits at the predicting positions."""
        assert inputs.positions is not None
        return logits_at(model, inputs.inputs, inputs.positions)  # type: ignore[arg-type]

    def states(self, model: nn.Module, examples: Examples, members: Sequence[int], layer: int) -> tuple[Tensor, Tensor]:
        """Transformers' hidden states of the whole texts: 0 is the embedding, -1 what the head reads."""
        for one in (examples[index] for index in members):
            if one.rejected is not None:
                raise UserError(
                    f"query '{one.id}' compares two answers, and this method compares the states of one text; remove "
                    "its rejected answer, or take a method of gradients (ekfac, dot, trak)"
                )
        backbone: Any = model
        check_layer(layer, backbone.config.num_hidden_layers)
        batch = collate([examples[index] for index in members], self.pad_id)
        there = batch.to(backbone.device)
        return hidden_states(backbone, there.tokens, there.attention)[layer], batch.attention.bool()

    def label_width(self, examples: Examples) -> int:
        """The most predicted tokens of a text."""
        return max(int(example.loss_mask[1:].sum()) for example in examples)

    def real(self, model: nn.Module, inputs: Inputs) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Padding counts nowhere, and below the head nothing behind an example's last predicting position."""
        assert inputs.positions is not None
        counted, last = inputs.weights.numpy() > 0, inputs.positions.numpy().max(1)
        reached = np.arange(last.max() + 1)[None] <= last[:, None]
        if runs_whole(model):
            places, counted = inputs.positions.numpy(), counted.copy()
            rows = np.nonzero(counted)
            counted = np.zeros_like(reached)  # its head runs at every position
            counted[rows[0], places[rows]] = True
        return None if counted.all() else counted, None if reached.all() else reached


def two_rows(example: Example) -> list[tuple[Example, float]]:
    """An example's two rows and their signs: what is wanted and what is not; where there is no such, itself twice."""
    alone, other = replace(example, rejected=None), example.rejected
    return [(alone, 1.0), (alone, 0.0) if other is None else (other, -1.0)]


def loss_positions(batch: Batch, reduction: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """Where logits are needed: positions t - 1 of the predicted tokens t, padded per batch. All on the host.

    Returns positions [B, L] int64, targets [B, L] int64, weights [B, L] float64: 1 over the number of the example's
    predicted tokens for "mean", 1 for "sum", 0 for padding. Errors: unknown reduction; an example without loss.
    """
    check_reduction(reduction)
    tokens, mask = batch.tokens.numpy(), batch.loss_mask[:, 1:].numpy()
    counts = mask.sum(1)
    if not counts.all():
        row = int(np.flatnonzero(counts == 0)[0])
        raise UserError(f"example {row} of a batch has no token with a loss; drop examples without a completion")
    width = int(counts.max())
    # A stable sort by "not predicted" lists each row's predicted positions first, in order.
    positions = np.argsort(~mask, axis=1, kind="stable")[:, :width]
    real = np.arange(width) < counts[:, None]
    positions = np.where(real, positions, 0)
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    weights = real / counts[:, None] if reduction == "mean" else real.astype(np.float64)
    return torch.from_numpy(positions), torch.from_numpy(targets), torch.from_numpy(weights)


def check_losses(examples: Sequence[Any], what: str) -> None:
    """Refuse examples without any token to predict; `what` says which list they are in."""
    for example in examples:
        if not example.loss_mask[1:].any():
            raise UserError(
                f"{what} example '{example.id}' has no token with a loss, so it has no gradient; "
                "drop it, or give it a completion that fits into the context"
            )
