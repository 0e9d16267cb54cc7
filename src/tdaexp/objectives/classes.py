"""Classifying: any module from inputs [B, ...] to logits [B, classes], and the cross-entropy of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.tensors import TensorExamples
from tdaexp.models.eval_mode import in_eval
from tdaexp.objectives.base import Inputs, Objective, check_layer
from tdaexp.runtime.deferred import send
from tdaexp.runtime.rehearsal import aside


@dataclass(frozen=True)
class Classes(Objective[TensorExamples]):
    """The loss of an example is the cross-entropy of its class: one position, whatever the inputs are.

    A batch is bounded by the positions of the layer that has most (the places of a convolution), where a text counts
    tokens.
    """

    def lengths(self, model: nn.Module, examples: TensorExamples) -> np.ndarray:
        """Positions of the layer that has most."""
        return np.full(len(examples), most_positions(model, examples.inputs), dtype=np.int64)

    def batch(self, examples: TensorExamples, members: Sequence[int], reduction: str = "mean") -> Inputs:
        """Inputs and classes; of one position there is nothing to reduce."""
        chosen = torch.tensor(members, dtype=torch.int64, device="cpu")
        weights = torch.ones(len(chosen), 1, dtype=torch.float64, device="cpu")
        ids = [examples.ids[index] for index in members]
        return Inputs(ids, examples.inputs[chosen], examples.targets[chosen][:, None], weights)

    def outputs(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Logits of the classes, at one position."""
        logits: Tensor = model(as_model(model, inputs.inputs))
        return logits[:, None]

    def states(
        self, model: nn.Module, examples: TensorExamples, members: Sequence[int], layer: int
    ) -> tuple[Tensor, Tensor]:
        """What the linear and convolutional layers read, in the order in which they run; -1 is what the last reads.

        States beside the first two axes are flattened: a place of an image is a position.
        """
        inputs = self.batch(examples, members).to(next(model.parameters()).device)
        with read_by_layers(model) as found:
            self.outputs(model, inputs)
        check_layer(layer, len(found) - 1)
        state = found[layer]
        if state.ndim == 4:  # channels are the features of an image's places
            state = state.flatten(2).transpose(1, 2)
        state = state.reshape(len(state), -1, state.shape[-1])
        return state, torch.ones(state.shape[:2], dtype=torch.bool, device=state.device)


def as_model(model: nn.Module, inputs: Tensor) -> Tensor:
    """Real inputs in the model's type; tokens stay what they are."""
    return inputs.to(next(model.parameters()).dtype) if inputs.is_floating_point() else inputs


LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def read_by_layers(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inputs of the linear and convolutional layers, in the order in which they run inside the block."""
    found: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], __: Tensor) -> None:
        found.append(arguments[0].detach())

    handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, LAYERS)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def most_positions(model: nn.Module, inputs: Tensor) -> int:
    """At how many positions the layer runs that runs at most of them, found by one example of `inputs`."""
    counts = [1]

    def count(layer: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
        channels = 1 if isinstance(layer, nn.Linear) else output.shape[1]
        counts.append(output[0].numel() // (output.shape[-1] if isinstance(layer, nn.Linear) else channels))

    handles = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, LAYERS)]
    try:
        with torch.no_grad(), in_eval(model), aside():
            model(as_model(model, send(inputs[:1], next(model.parameters()).device)))
    finally:
        for handle in handles:
            handle.remove()
    return max(counts)
