"""Per-example gradients by autograd, for parameters whose layers have no rule for captured ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from tdaexp.models.plain import plain_kernels
from tdaexp.models.substitute import called_with
from tdaexp.objectives.base import Inputs, Loss, Objective
from tdaexp.runtime.accumulation import accumulation_dtype


class Losses(nn.Module):
    """A model's losses [B] as a module of its own, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, objective: Objective[Any], loss: Loss) -> None:
        super().__init__()
        self.model, self.objective, self.loss = model, objective, loss

    def forward(self, inputs: Inputs) -> Tensor:
        """Losses [B] of some inputs."""
        return self.objective.losses(self.model, inputs, self.loss)


def explicit_gradients(
    model: nn.Module, names: Sequence[str], objective: Objective[Any], inputs: Inputs, loss: Loss
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients [B, *shape] of the named parameters, in float32 at least, and losses [B].

    All examples at once where the model allows it (`vmap`), else one after the other. Memory: B times the parameters.
    """
    parameters = {f"model.{name}": dict(model.named_parameters())[name].detach() for name in names}
    whole, tensors = Losses(model, objective, loss), [one.unflatten(0, (-1, inputs.rows)) for one in inputs.tensors()]

    def one(values: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        losses: Tensor = called_with(whole, values, inputs.having(rows))
        return losses[0]

    try:
        with plain_kernels():
            found, losses = vmap(grad_and_value(one), in_dims=(None, 0), randomness="error")(parameters, tensors)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        rows = [_alone(one, parameters, [value[k] for value in tensors]) for k in range(len(inputs.ids))]
        found = {name: torch.stack([gradient[name] for gradient, _ in rows]) for name in parameters}
        losses = torch.stack([value for _, value in rows])
    return {
        name.removeprefix("model."): value.to(accumulation_dtype(value.dtype)) for name, value in found.items()
    }, losses.detach()


def _alone(
    one: Callable[..., Tensor], parameters: dict[str, Tensor], rows: list[Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """One example's gradients and loss, by plain autograd: an operation of the model's own may know nothing else."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        loss = one(leaves, rows)
        if not loss.requires_grad:  # it reads none of them
            return {name: torch.zeros_like(value) for name, value in parameters.items()}, loss
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True)), loss.detach()
