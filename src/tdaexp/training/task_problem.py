"""What is trained in a recorded run: a module, its examples, and a loss for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.runtime.errors import UserError

ROWS = 2000  # examples per pass where no gradient is needed


class Problem(Protocol):
    """The objective of step s is Σ_k w_k L(f(x_k), y_k) over the batch: `weights` and `losses` of its examples."""

    @property
    def module(self) -> nn.Module:
        """The network, on its device, in evaluation mode."""

    @property
    def fingerprint(self) -> str:
        """Identity of the training examples."""

    def __len__(self) -> int:
        """Number of training examples."""

    def losses(self, indices: np.ndarray) -> Tensor:
        """Loss of each example [B], with gradients."""

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """Weight [B] float64 of each example in the loss of a batch."""

    def evaluate(self) -> dict[str, float]:
        """Flat measures of the present weights, e.g. `test/accuracy`."""


@dataclass(frozen=True, eq=False)
class Classification:
    """Cross-entropy over logits [N, classes], the mean over the batch."""

    module: nn.Module
    corpus: TensorCorpus

    @property
    def fingerprint(self) -> str:
        """Identity of the training examples."""
        return self.corpus.train.fingerprint()

    def __len__(self) -> int:
        return len(self.corpus.train)

    def losses(self, indices: np.ndarray) -> Tensor:
        """Cross-entropy of each example [B] in nats, with gradients."""
        rows, train = torch.from_numpy(indices), self.corpus.train
        return self._loss(train.inputs[rows], train.targets[rows])[0]

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """1 / |B| each."""
        return np.full(len(indices), 1.0 / len(indices))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss and accuracy on the training and test examples."""
        return {
            f"{part}/{key}": value
            for part, examples in (("train", self.corpus.train), ("test", self.corpus.test))
            for key, value in self._measures(examples).items()
        }

    def _measures(self, examples: TensorExamples) -> dict[str, float]:
        loss, right = 0.0, 0
        for inputs, targets in zip(examples.inputs.split(ROWS), examples.targets.split(ROWS), strict=True):
            losses, logits = self._loss(inputs, targets)
            loss += losses.double().sum().item()
            right += int((logits.argmax(1).cpu() == targets).sum())
        return {"loss": loss / len(examples), "accuracy": right / len(examples)}

    def _loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.module.parameters()).device
        logits = self.module(inputs.to(device))
        return nn.functional.cross_entropy(logits, targets.to(device), reduction="none"), logits


def check_deterministic(module: nn.Module, *, training: bool = False) -> None:
    """Refuse layers under which an output is no function of parameters and one example: dropout, unfrozen batch norm.

    With `training` also dropout that is off: who asked for it would get a training without.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 and (layer.training or training):
            raise UserError(f"model: '{name}' is dropout with p={layer.p}; a recorded training needs p=0, set it to 0")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise UserError(
                f"model: '{name}' is a batch norm in training mode, an example's loss depends on its batch; freeze "
                "its averages (model.norm=frozen) or use model.norm=group"
            )
