"""ExPLAIND's influence of every single parameter, summed over steps and training examples.

Source: Eichin et al. 2026, section 4: Ψ(θ_i, x)_j = Σ_s φ_test(s)(x)_{j,i} · Σ_k φ_train(s, k)_i. The sum over training
examples is the kernel's share of the recorded update, so that no gradient of a training example is needed. Sign:
positive = raised the output. Cost: the queries' Jacobian at each node of each step; memory for some queries' Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.parameters import Batch, Function, Layout
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.reverse import chunks, output_gradients
from tdaexp.paths.replay import Parts, step_of
from tdaexp.runtime.progress import track
from tdaexp.training.trajectory import Trajectory

MEMORY = 256 * 2**20  # bytes of one piece of the influences


@dataclass(frozen=True)
class Importance:
    """Over parameters [D] in the layout's order: `signed` Σ_{x,j} Ψ(θ_i, x)_j and `absolute` Σ_{x,j} |Ψ(θ_i, x)_j|, the
    paper's Ψ̄; `groups` [G] is Ψ̄ of the groups, whose parameters are summed before the absolute value.
    """

    signed: Tensor
    absolute: Tensor
    groups: Tensor


def parameter_importance(
    f: Function, trajectory: Trajectory, layout: Layout, queries: Batch, group: Tensor, quadrature: Quadrature
) -> Importance:
    """Accounts of f [Q, O] for queries, over every recorded step; `group` [D] int64 numbers each parameter's group."""
    width = f(trajectory.parameters(0), tuple(tensor[:1] for tensor in queries)).shape[1]
    rows = max(1, MEMORY // (4 * width * layout.size))
    pieces = list(chunks(queries, rows))
    signed, absolute = torch.zeros(2, layout.size, device=group.device)
    groups = torch.zeros(int(group.max()) + 1, device=group.device)
    for piece in track(pieces, "importance of parameters, pieces of queries", len(pieces)):
        influence = _influence(f, trajectory, layout, piece, quadrature)
        signed += influence.sum(0)
        absolute += influence.abs().sum(0)
        sums = influence.new_zeros(len(influence), len(groups)).index_add_(1, group, influence)
        groups += sums.abs().sum(0)
    return Importance(signed, absolute, groups)


@torch.no_grad()
def _influence(f: Function, trajectory: Trajectory, layout: Layout, batch: Batch, quadrature: Quadrature) -> Tensor:
    """Ψ(θ_i, x)_j [Q·O, D]."""
    parts, decomposer = Parts(trajectory, layout), Decomposer(f, layout, batch, quadrature)
    total: Tensor | None = None
    for number in trajectory.steps:
        step = step_of(trajectory, number, torch.float32, batch[0].device)
        direction = layout.named(parts.split(step)["kernel"])
        before, after = decomposer.value(step.start), decomposer.value(step.end)
        count = decomposer.node_count(step, before, after)
        if total is None:
            total = before.new_zeros(before.numel(), layout.size)
        for weight, function, parameters in decomposer.points(step, count):
            found = output_gradients(function, parameters, layout, batch)
            for name, place in layout.places.items():
                total[:, place].addcmul_(found[name].flatten(2).flatten(0, 1), direction[name].flatten(), value=weight)
    assert total is not None  # a trajectory has at least one step
    return total
