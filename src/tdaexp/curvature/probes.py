"""Gradients whose second moment is the GGN: like those of drawn labels, without the latter's rare large ones.

    u_i = Σ_t J_itᵀ R_it ξ_it,   R Rᵀ = H,   ξ standard normal:   E[u_i u_iᵀ] = Σ_t J_itᵀ H_it J_it

with J the Jacobian and H the loss Hessian of the logits at position t, R its root (`hessian_root`). A label that is
drawn from a model that is sure of itself gives a gradient near zero most of the time and a large one seldom: the mean
of many is the same, but the spread of a few hundred is not. Each example's noise is a function of the seed and its id.
Cost: a forward and a backward pass per example.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.chosen_examples import by_hash
from tdaexp.curvature.hessian_root import root_of
from tdaexp.gradients.capture import capture
from tdaexp.gradients.factors import Factors
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component
from tdaexp.runtime.deferred import send
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.runtime.rehearsal import padded, sampled


def probe_gradients(gradients: Gradients, count: int, seed: int, tokens_per_batch: int) -> Tensor:
    """Draw `count` of them [count, size]: all examples, in an order of the seed's, before any a second time.

    The components of `gradients` must all have a factor rule. Errors (UserError): an example without loss; an objective
    whose loss Hessian has no root that is known here.
    """
    gradients.check(range(len(gradients)), "training")
    size = VectorSpace(gradients.model, gradients.components).size
    found = torch.zeros(count, size, dtype=gradients.dtype, device=gradients.device)
    order = by_hash(gradients.ids, None, seed)
    with gradients.ready(), torch.no_grad():
        for draw, start in enumerate(range(0, count, len(order))):
            rows = found[start : start + len(order)]
            _fill(rows, gradients, order[: len(rows)], f"{seed} {draw}", tokens_per_batch)
    return found


def _fill(found: Tensor, gradients: Gradients, members: list[int], drawn: str, tokens_per_batch: int) -> None:
    """Write u of some examples to the rows of `found`; `drawn` names the noise."""
    space, row = VectorSpace(gradients.model, gradients.components), {one: at for at, one in enumerate(members)}
    places = dict(zip(gradients.components.names, space.slices, strict=True))
    for batch in sampled(gradients.batches(tokens_per_batch, members), padded(gradients.lengths)):
        rows = send(np.array([row[member] for member in batch]), gradients.device)

        def consume(arrived: list[Component], factors: list[Factors], rows: Tensor = rows) -> None:
            for component, one in zip(arrived, factors, strict=True):
                found[rows, places[component.name]] = one.materialise()

        losses = partial(_probed, gradients, batch, drawn)
        capture(gradients.model, gradients.components, len(batch), losses, consume)


def _probed(gradients: Gradients, members: list[int], drawn: str) -> Tensor:
    """Losses [B], linear in the logits: Σ_t (R ξ)_t · logits_t."""
    objective = gradients.objective
    inputs = objective.batch(gradients.examples, members, "sum").to(gradients.device)
    logits = objective.outputs(gradients.model, inputs)
    noise = send(_normals(inputs.ids, drawn, logits.shape[1:]), logits.device, logits.dtype)
    real = (inputs.weights > 0).to(logits.dtype)  # padding carries no loss
    return ((logits * root_of(objective)(logits.detach(), noise)).sum(-1) * real).sum(1)


def _normals(ids: Sequence[str], drawn: str, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers [B, *shape] float64; an example's begin in the same way, however many there are."""
    rows = [np.random.default_rng(int(fingerprint(drawn, one), 16)).standard_normal(tuple(shape)) for one in ids]
    return torch.from_numpy(np.stack(rows))
