"""The training of a language model of any architecture as a problem of examples, each with its weight in a loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tdaexp.data.examples import Examples, collate
from tdaexp.models.loaded import one_text_a_row


@dataclass(frozen=True, eq=False)
class Texts:
    """What `training.fit` minimises: a step's loss is the mean over the batch's counted tokens.

    So an example's own loss is the sum over its tokens, and its weight one over the batch's.
    """

    module: PreTrainedModel
    examples: Examples
    pad_id: int = 0

    @property
    def fingerprint(self) -> str:
        """Identity of the training examples."""
        return self.examples.fingerprint()

    def __len__(self) -> int:
        return len(self.examples)

    def losses(self, indices: np.ndarray) -> Tensor:
        """Summed loss of each example's counted tokens [B] in nats, with gradients."""
        batch = collate(self.examples.select(indices), self.pad_id).to(next(self.module.parameters()).device)
        counted = batch.loss_mask[:, 1:]
        with one_text_a_row():
            logits = self.module(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False).logits
        predicted = logits[:, :-1][counted].float()  # [tokens with loss, V]
        losses = torch.nn.functional.cross_entropy(predicted, batch.tokens[:, 1:][counted], reduction="none")
        rows = torch.arange(len(indices), device=losses.device)[:, None].expand_as(counted)[counted]
        return losses.new_zeros(len(indices)).index_add(0, rows, losses)

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """One over the counted tokens of the batch, for each example."""
        tokens = sum(int(self.examples[int(index)].loss_mask[1:].sum()) for index in indices)
        return np.full(len(indices), 1.0 / tokens)

    def evaluate(self) -> dict[str, float]:
        """Nothing is watched on the way."""
        return {}
