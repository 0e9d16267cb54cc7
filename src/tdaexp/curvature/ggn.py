"""Products of the generalised Gauss-Newton matrix with vectors, without ever forming the matrix.

    G = 1/N Σ_i Σ_t J_itᵀ H_it J_it

over N examples and the positions t that carry loss (a classifier has one): the loss is *summed over an example's
positions and averaged over examples*. J_it is the Jacobian of the logits at t with respect to the parameters of the
chosen components, and H_it the Hessian of the loss there with respect to the logits, exactly: diag(p) - p pᵀ for
cross-entropy, whatever the label.
Source: Schraudolph 2002; Martens 2020, section 8; Bao et al. 2025, section 3.2.

K vectors are multiplied at once: one forward pass, one forward-mode pass for J V and one reverse-mode pass for
Jᵀ (H J V), the latter two vectorised over K. Cost per vector: about four forward passes over the N examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from tdaexp.gradients.capture import frozen
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.plain import forward_mode
from tdaexp.models.substitute import called_with
from tdaexp.objectives.base import Inputs, Objective
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.rehearsal import alike, padded, sampled

Outputs = Callable[[dict[str, Tensor]], Tensor]
"""Parameters by name to a network's outputs, of any shape."""

HessianProduct = Callable[[Tensor, Tensor], Tensor]
"""(outputs, directions [K, *outputs]) to the loss Hessian's products with the directions [K, *outputs]."""


def ggn_product(
    outputs: Outputs, parameters: dict[str, Tensor], directions: dict[str, Tensor], hessian: HessianProduct
) -> dict[str, Tensor]:
    """Σ Jᵀ H J v for K directions at once, summed over all outputs.

    `directions` maps names to [K, *shape], and so does the result.
    """
    values, pull_back, *_ = torch.func.vjp(outputs, parameters)

    def push(direction: dict[str, Tensor]) -> Tensor:
        tangent: Tensor = torch.func.jvp(outputs, (parameters,), (direction,))[1]
        return tangent

    pushed = torch.func.vmap(push)(directions)
    (pulled,) = torch.func.vmap(pull_back)(hessian(values, pushed))
    result: dict[str, Tensor] = pulled
    return result


Work = tuple[list[int], dict[str, Tensor], dict[str, Tensor]]
"""Numbers of examples, the model's parameters, and directions in them."""


class TrainingGGN:
    """The GGN of the loss of some examples, summed over positions, with respect to the components of `gradients`.

    Symmetric and positive semi-definite, [size, size]. Works in the model's dtype; sums are formed in that of the
    vectors. Batches hold at most `tokens_per_batch` positions after padding, which changes nothing but rounding.
    Errors of products (UserError): NaN or Inf, with the example that it comes from; an operation of the model that has
    no forward-mode derivative.
    """

    def __init__(self, gradients: Gradients, tokens_per_batch: int = 1024) -> None:
        self.gradients = gradients
        self.space = VectorSpace(gradients.model, gradients.components)
        self.examples = gradients.examples
        self._outputs = OutputsOf(gradients.model, gradients.objective)
        self.batches = gradients.batches(tokens_per_batch)
        self._summed = Shrinking(self._batch_product, lambda one: [(half, *one[1:]) for half in two(one[0])], _added)

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return self.space.size

    def multiply(self, vectors: Tensor) -> Tensor:
        """G v for each of the vectors [K, size]."""
        return self._product(vectors, self.batches) / len(self.examples)

    def multiply_some(self, vectors: Tensor, members: list[int]) -> Tensor:
        """The product with the GGN of some of the examples alone, averaged over them: [K, size]."""
        return self._product(vectors, [members]) / len(members)

    def _product(self, vectors: Tensor, batches: list[list[int]]) -> Tensor:
        parameters = self.space.parameters()
        narrow = next(iter(parameters.values())).dtype
        directions = self.space.tangents(vectors.to(narrow))
        total = torch.zeros_like(vectors)
        with frozen(self._outputs), forward_mode(self._outputs, "products with the curvature"):
            for members in sampled(batches, padded(self.gradients.lengths)):
                work = members, parameters, directions
                total += alike(self._size(vectors, members), functools.partial(self._summed, work)).to(total.dtype)
            # Looked at once: only a sum that is not finite makes it worth while to find out whose fault it is.
            if not _finite(total) and _finite(vectors):
                for members in batches:
                    if not _finite(self._summed((members, parameters, directions))):
                        raise UserError(self._fault(members, parameters, directions))
        return total

    def _size(self, vectors: Tensor, members: list[int]) -> Hashable:
        """What the work of a product with some examples depends on."""
        return self, vectors.shape, vectors.dtype, padded(self.gradients.lengths)(members), len(members)

    def _fault(self, members: list[int], parameters: dict[str, Tensor], directions: dict[str, Tensor]) -> str:
        """Name the first of the examples whose own product is not finite."""
        alone = (self._batch_product(([index], parameters, directions)) for index in members)
        guilty = next((index for index, one in zip(members, alone, strict=True) if not _finite(one)), members[0])
        return (
            f"the curvature of example '{self.gradients.ids[guilty]}' is not finite; check the checkpoint and the "
            "example, or try trainer.precision=float32"
        )

    def _batch_product(self, work: Work) -> Tensor:
        """Σ Jᵀ H J v over some examples [K, size]."""
        members, parameters, directions = work
        objective = self.gradients.objective
        inputs = objective.batch(self.examples, members, "sum").to(self.gradients.device)
        counted = inputs.weights > 0

        def outputs(values: dict[str, Tensor]) -> Tensor:
            named = {f"model.{name}": value for name, value in values.items()}
            logits: Tensor = called_with(self._outputs, named, inputs)
            return logits

        def hessian(logits: Tensor, pushed: Tensor) -> Tensor:
            return objective.hessian(logits, pushed) * counted[..., None]  # padding carries no loss

        try:
            return self.space.vectors(ggn_product(outputs, parameters, directions, hessian))
        except NotImplementedError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"products with the curvature need forward-mode derivatives of all that the model does: {reason} Take "
                "method=ekfac or trak, which need none"
            ) from error


def _added(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)


def _finite(values: Tensor) -> bool:
    # A sum is finite unless an entry is not, or it overflows itself: then the entries are looked at.
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


class OutputsOf(nn.Module):
    """A model's outputs for an objective's inputs, as a module of its own."""

    def __init__(self, model: nn.Module, objective: Objective[Any]) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        objective.prepare(model)  # before anything is differentiated

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits [B, L, V]."""
        return self.objective.outputs(self.model, inputs)
