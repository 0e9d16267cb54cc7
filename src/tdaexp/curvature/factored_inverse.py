"""EK-FAC's damped inverse on vectors over all components: what the iterative solvers are preconditioned with.

    P = (Q Λ Qᵀ + λI)⁻¹,   Q = Q_S ⊗ Q_A, matrix by matrix

Components with a factor rule are all that the solvers look at (`layers.layers_of`), so that P covers every entry of
their vectors. Symmetric and, with λ > 0, positive definite, as conjugate gradients want it. Cost per vector: 2 O I (O +
I) multiply-adds a matrix, little beside a product with the GGN. Memory: the factors, once, on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.precondition import LayerFactors

Damped = tuple[Layer, LayerFactors, Damping]
"""A layer, its factors on the vectors' device, and its damping."""


def factored_inverse(damped: Sequence[Damped], places: Mapping[str, slice]) -> Callable[[Tensor], Tensor]:
    """P as a function of vectors [K, n]; `places` says where each component of the layers lies in a vector.

    Components that are of none of the layers are left as they come.
    """

    def precondition(vectors: Tensor) -> Tensor:
        found = vectors.clone()
        for layer, factors, damping in damped:
            parts = [places[name] for name, _ in layer.members]
            gradient = torch.cat([vectors[:, part] for part in parts], dim=1).view(-1, layer.outputs, layer.inputs)
            solved = factors.precondition(gradient, damping).flatten(1)
            for part, one in zip(parts, solved.split([part.stop - part.start for part in parts], dim=1), strict=True):
                found[:, part] = one
        return found

    return precondition
