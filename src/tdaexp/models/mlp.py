"""Fully connected networks; without a hidden layer the model is logistic regression."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tdaexp.models.task import TaskModel, activation
from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from tdaexp.data.tensors import TensorCorpus


@dataclass
class Mlp(TaskModel):
    """Linear layers with activations between them. Components fc1, fc2, …: the hidden layers, and then the classes.

    hidden: widths of the hidden layers; none makes logistic regression.
    """

    name: str = "mlp"
    hidden: list[int] = field(default_factory=lambda: [128, 64])

    def __post_init__(self) -> None:
        """Refuse layers without a unit."""
        super().__post_init__()
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.hidden={self.hidden}: must be widths of at least 1; [] for no hidden layer")

    def module(self, corpus: TensorCorpus) -> nn.Module:
        """The network for inputs of any shape, which are read as one vector. Errors (UserError): inputs of symbols."""
        inputs = corpus.train.inputs
        if not inputs.is_floating_point():
            raise UserError(f"model={self.name}: reads numbers; choose dataset=mnist, digits or cifar2")
        return Network(self, inputs[0].numel(), corpus.classes)


class Network(nn.Module):
    """Inputs [N, ...] to logits [N, classes]."""

    def __init__(self, config: Mlp, inputs: int, classes: int) -> None:
        super().__init__()
        widths = [inputs, *config.hidden, classes]
        for place, (before, after) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{place}", nn.Linear(before, after))
        self.activation = activation(config.activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits; the softmax belongs to the loss."""
        *hidden, last = (layer for layer in self.children() if isinstance(layer, nn.Linear))
        state = inputs.flatten(1)  # [N, inputs]
        for layer in hidden:
            state = self.activation(layer(state))  # [N, width]
        logits: Tensor = last(state)
        return logits
