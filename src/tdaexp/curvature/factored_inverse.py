"""EK-FAC's damped inverse on vectors over all components: what the iterative solvers are preconditioned with.

    P = (Q Λ Qᵀ + λI)⁻¹,   Q = Q_S ⊗ Q_A, matrix by matrix

Components with a factor rule are all that the solvers look at (`layers.layers_of`), so that P covers every entry of
their vectors. Symmetric and, with λ > 0, positive definite, as conjugate gradients want it. Cost per vector: 2 O I (O +
I) multiply-adds a matrix, little beside a product with the GGN. Memory: the factors, once, on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.layers import Layers
from tdaexp.gradients.vectors import VectorSpace


def factored_inverse(
    factors: Factors, layers: Layers, space: VectorSpace, damping: float
) -> Callable[[Tensor], Tensor]:
    """P as a function of vectors [K, n] of the `space`, whose components are those of `layers`."""
    device = next(space.model.parameters()).device
    held = {layer.name: factors[layer.name].to(device) for layer in layers.layers}
    places = dict(zip(space.components.names, space.slices, strict=True))
    damped = Damping(damping)

    def precondition(vectors: Tensor) -> Tensor:
        found = torch.empty_like(vectors)
        for layer in layers.layers:
            parts = [places[name] for name, _ in layer.members]
            gradient = torch.cat([vectors[:, part] for part in parts], dim=1).view(-1, layer.outputs, layer.inputs)
            solved = held[layer.name].precondition(gradient, damped).flatten(1)
            for part, one in zip(parts, solved.split([part.stop - part.start for part in parts], dim=1), strict=True):
                found[:, part] = one
        return found

    return precondition
