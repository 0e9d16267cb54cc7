"""Per-example gradients of experts that lie in one tensor, from what their module reads and its output's gradient.

Token t, which the router sends to expert e with the weight ρ, gives ρ W_down (act(W_gate x) ⊙ W_up x). An expert's
three matrices are linear layers that see some of the tokens; the others are zeros in their factors. What is inside the
module is computed anew, one expert at a time, so that nothing but one expert's values is held.

Cost: each expert runs over all positions, E / k times what the router makes of k experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdaexp.gradients.factors import LinearFactors
from tdaexp.models.parts import MATRICES, Part


def expert_factors(
    module: nn.Module, parts: Sequence[Part], read: Sequence[Tensor], delta: Tensor, examples: int
) -> Iterator[LinearFactors]:
    """Factors of the parts, those of one expert one after the other.

    `read`: states x [N, d] of all positions of the examples in order, experts chosen for each [N, k] and their weights
    ρ [N, k]. `delta` [N, d].
    """
    last, sides = -1, {}
    states, chosen, weights = read
    for part in parts:
        assert part.expert is not None
        if part.expert != last:
            last = part.expert
            sides = _sides(module, last, states, (weights * (chosen == last)).sum(-1, keepdim=True), delta)
        matrix = part.parameters[0].rpartition(".")[2]
        inputs, deltas = (one.reshape(examples, -1, one.shape[-1]) for one in sides[matrix])
        if part.rows is not None:
            deltas = deltas[..., int(part.rows[0]) : int(part.rows[-1]) + 1]
        yield LinearFactors(inputs, deltas, False)


def _sides(module: Any, number: int, states: Tensor, weight: Tensor, delta: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What one expert's matrices read, and the gradients of what they give: [N, ·] each, by the parameter's name."""
    inner, outer = (getattr(module, name)[number].detach() for name in MATRICES)
    here = weight != 0
    read = states * here
    behind = delta * weight.to(delta.dtype)
    with torch.enable_grad():
        given = nn.functional.linear(read, inner).requires_grad_()
        gated = module._apply_gate(given)
        (before,) = torch.autograd.grad(gated, given, behind @ outer)
    return {MATRICES[0]: (read, before), MATRICES[1]: (gated.detach() * here, behind)}
