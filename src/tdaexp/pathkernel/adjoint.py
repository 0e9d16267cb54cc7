"""A training forwards and backwards: updates, and the adjoints that carry a measurement's derivative back through them.

Source: metagradients (MAGIC), Ilyas and Engstrom 2025; Maclaurin et al. 2015. A step t = 1, 2, … follows the gradient g
of its loss Σ_k p_k ℓ_k at θ_{t−1}. With a_θ, a_m, a_v [Q, D] the derivatives of Q measurements with respect to what the
step leaves, η its rate and λ the decay, AdamW has, with r = √(v̂ + ε_r) and d = r + ε after the step,

    a_m' = a_m − η a_θ / ((1 − β₁ᵗ) d)         a_v' = a_v + η a_θ m̂ / (2 (1 − β₂ᵗ) r d²), where r > 0
    a_g = (1 − β₁) a_m' + 2 (1 − β₂) g ∘ a_v'
    a_θ ← (1 − ηλ) a_θ + H a_g                 a_m ← β₁ a_m'       a_v ← β₂ a_v'

and SGD with momentum μ, whose decay is in the gradient,

    a_b' = a_b − η a_θ       a_g = a_b'        a_θ ← a_θ + (H + λ) a_b'        a_b ← μ a_b'

⟨a_g, p_k ∇ℓ_k⟩ is the derivative with respect to example k's weight in this step, H the Hessian of the step's loss,
both at θ_{t−1}. A gradient that is clipped to the norm c, g = c u / (‖u‖ + 10⁻⁶), hands a_g on as a_u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.pathkernel.updates import SGD, AdamW, Optimiser
from tdaexp.runtime.errors import UserError

CLIP_EPS = 1e-6
"""What torch adds to the norm of a gradient that it clips."""


@dataclass(frozen=True)
class State:
    """What a training has between two steps: parameters [D], the running average of gradients (SGD: the buffer) [D],
    and AdamW's of their squares [D].

    An adjoint is one, too: derivatives [Q, D] with respect to each.
    """

    parameters: Tensor
    first: Tensor
    second: Tensor | None = None

    @classmethod
    def at_start(cls, rule: Optimiser, parameters: Tensor) -> State:
        """These parameters or derivatives [..., D], and averages of zero."""
        second = torch.zeros_like(parameters) if isinstance(rule, AdamW) else None
        return cls(parameters, torch.zeros_like(parameters), second)

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Update:
    """A step's own numbers: `number` from 0, learning `rate`, weight `decay` [D], and the norm that the gradient is cut
    to (`clip`, 0 = never).
    """

    number: int
    rate: float
    decay: Tensor
    clip: float = 0.0


def check_adjoint(rule: Optimiser) -> None:
    """Refuse (UserError) an optimiser whose updates cannot be gone back through here."""
    if isinstance(rule, SGD) and (rule.nesterov or rule.dampening):
        kind = "Nesterov's momentum" if rule.nesterov else f"dampening {rule.dampening:g}"
        raise UserError(f"optimiser sgd with {kind}: has no adjoint here; train with plain momentum, or with adamw")
    if not isinstance(rule, (AdamW, SGD)):
        raise UserError(f"optimiser {type(rule).__name__}: has no adjoint here; train with adamw or sgd")


def clip_factor(gradient: Tensor, limit: float) -> Tensor | None:
    """What a gradient [D] is multiplied by so that its norm is at most `limit`; None where it is left as it is."""
    if not limit:
        return None
    factor: Tensor = limit / (gradient.norm() + CLIP_EPS)
    return factor if float(factor) < 1 else None


def clipped(gradient: Tensor, limit: float) -> Tensor:
    """The gradient [D] as the optimiser gets it."""
    factor = clip_factor(gradient, limit)
    return gradient if factor is None else factor * gradient


def advance(rule: Optimiser, state: State, gradient: Tensor, step: Update) -> State:
    """The state after a step along a gradient [D] that has been clipped."""
    if isinstance(rule, SGD):
        buffer = rule.momentum * state.first + gradient + step.decay * state.parameters
        return State(state.parameters - step.rate * buffer, buffer)
    assert isinstance(rule, AdamW) and state.second is not None
    count = rule.first + step.number + 1
    first = torch.lerp(state.first, gradient, 1 - rule.betas[0])
    second = rule.betas[1] * state.second + (1 - rule.betas[1]) * gradient * gradient
    divisor = rule.divisor(second / (1 - rule.betas[1] ** count))
    shrunk = (1 - step.rate * step.decay) * state.parameters
    return State(shrunk - (step.rate / (1 - rule.betas[0] ** count)) * first / divisor, first, second)


def go_back(rule: Optimiser, adjoint: State, after: State, gradient: Tensor, step: Update) -> tuple[Tensor, State]:
    """From derivatives by what the step left to (a_g [Q, D], derivatives by what was before it).

    `after` is the state that the step led to, `gradient` the clipped one [D]. What comes through the gradient, H a_u,
    is not in the result: it is to be added to the derivatives by the parameters.
    """
    if isinstance(rule, SGD):
        return _back_sgd(rule, adjoint, step)
    assert isinstance(rule, AdamW)
    return _back_adamw(rule, adjoint, after, gradient, step)


def through_clipping(directions: Tensor, gradient: Tensor, limit: float) -> Tensor:
    """a_u [Q, D] of a_g: derivatives with respect to the gradient u [D] before it was clipped."""
    factor = clip_factor(gradient, limit)
    if factor is None:
        return directions
    norm: Tensor = gradient.norm()
    along = (directions @ gradient) * factor / ((norm + CLIP_EPS) * norm)
    return factor * directions - along[:, None] * gradient


def _back_sgd(rule: SGD, adjoint: State, step: Update) -> tuple[Tensor, State]:
    buffer = adjoint.first - step.rate * adjoint.parameters
    return buffer, State(adjoint.parameters + step.decay * buffer, rule.momentum * buffer)


def _back_adamw(rule: AdamW, adjoint: State, after: State, gradient: Tensor, step: Update) -> tuple[Tensor, State]:
    assert after.second is not None and adjoint.second is not None
    count, (beta, beta_sq) = rule.first + step.number + 1, rule.betas
    first_left, second_left = 1 - beta**count, 1 - beta_sq**count
    root = (after.second / second_left + rule.eps_root).sqrt()
    divisor = root + rule.eps
    first = adjoint.first - step.rate / first_left * adjoint.parameters / divisor
    slope = after.first / (2 * first_left * second_left) / (root * divisor * divisor)
    slope = torch.where(root > 0, slope, torch.zeros_like(slope))  # a parameter that never had a gradient
    second = adjoint.second + step.rate * adjoint.parameters * slope
    directions = (1 - beta) * first + 2 * (1 - beta_sq) * gradient * second
    shrunk = (1 - step.rate * step.decay) * adjoint.parameters
    return directions, State(shrunk, beta * first, beta_sq * second)
