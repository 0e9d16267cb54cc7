"""Factors, Λ and the damped inverse of a causal language model built densely in float64 from plain autograd.

Batches of one without padding, gradients of each sampled token's loss and of each example's summed loss, explicit
matrices A ⊗ S: nothing is shared with the code under test but the model and the drawn labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gradient_oracle import component_gradient, gradients_of
from torch import Tensor
from transformers import PreTrainedModel

from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.layers import Layers
from tdaexp.data.examples import Example, Examples
from tdaexp.models.components import component_map


def samples_of(
    model: PreTrainedModel, layers: Layers, examples: Examples, tokens_per_batch: int = 4096
) -> FisherSamples:
    """What is tested: passes over the examples with drawn labels."""
    return FisherSamples(gradients_of(model, examples, layers.map), layers, tokens_per_batch)


@dataclass
class Dense:
    """Of one matrix: A [I, I], S [O, O] (means over positions), Λ [O, I], and the examples' gradients [N, O, I]."""

    a: Tensor
    s: Tensor
    gradients: Tensor
    positions: int

    def basis(self) -> Tensor:
        """Columns q_S ⊗ q_A of vec(G) by rows [O I, O I], from the eigenvectors of the explicit A and S."""
        q_a, q_s = torch.linalg.eigh(self.a).eigenvectors, torch.linalg.eigh(self.s).eigenvectors
        return torch.kron(q_s, q_a)

    def curvature(self, mode: str) -> Tensor:
        """The approximation of E[vec(G) vec(G)ᵀ] as an explicit matrix [O I, O I]."""
        if mode == "kfac":
            return torch.kron(self.s, self.a) * (self.positions / len(self.gradients))
        vectors = self.gradients.flatten(1)
        if mode == "diagonal":
            return torch.diag(vectors.square().mean(0))
        basis = self.basis()
        return basis @ torch.diag((vectors @ basis).square().mean(0)) @ basis.T

    def solve(self, mode: str, gradient: Tensor, damping: float) -> Tensor:
        """(G + λI)⁻¹ vec(gradient), by a dense solver."""
        matrix = self.curvature(mode)
        matrix = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
        return torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient)


def dense(model: PreTrainedModel, examples: Examples, labels: dict[str, list[int]], names: list[str]) -> Dense:
    """The oracle for one weight matrix: `names` are its components, `labels` the drawn labels by example id."""
    a_sum: Tensor | float = 0.0
    s_sum: Tensor | float = 0.0
    gradients, count = [], 0
    for example in examples:
        a, delta, gradient = _one(model, example, labels[example.id], names)
        a_sum, s_sum, count = a_sum + a.T @ a, s_sum + delta.T @ delta, count + len(a)
        gradients.append(gradient)
    return Dense(a_sum / count, s_sum / count, torch.stack(gradients), count)


def _one(
    model: PreTrainedModel, example: Example, labels: list[int], names: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with the constant [T, I], output gradients [T, O] and gradient [O, I] of one example.

    δ is the gradient with respect to an addition to the output of the matrix, put there by a hook.
    """
    components = component_map(model).select(names).components
    part = components[0].parts[0]
    module = model.get_submodule(part.module)
    kept: dict[str, Tensor] = {}

    def hook(_, arguments, output):
        kept["a"] = arguments[0].detach()[0]
        kept["shift"] = torch.zeros_like(output, requires_grad=True)
        return output + kept["shift"]

    predicting = np.flatnonzero(example.loss_mask[1:])
    model.requires_grad_(True)
    handle = module.register_forward_hook(hook)
    try:
        with torch.enable_grad():
            logits = model(input_ids=torch.from_numpy(example.tokens)[None], use_cache=False).logits[0]
            logs = torch.log_softmax(logits, dim=1)
            loss = -sum(logs[t, label] for t, label in zip(predicting, labels, strict=True))
            parameters = dict(model.named_parameters())
            wanted = [kept["shift"], *parameters.values()]
            shift, *values = torch.autograd.grad(loss, wanted)
    finally:
        handle.remove()
        model.requires_grad_(False)
    named = dict(zip(parameters, values, strict=True))
    rows = [torch.from_numpy(one.parts[0].rows) for one in components if one.parts[0].rows is not None]
    last = int(predicting[-1]) + 1
    a, delta = kept["a"][:last], shift[0, :last]
    if part.bias:
        a = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], dim=1)
    if rows:
        delta = delta[:, torch.cat(rows)]
    gradient = torch.cat([component_gradient(model, one, named).view(-1, a.shape[1]) for one in components])
    return a, delta, gradient
