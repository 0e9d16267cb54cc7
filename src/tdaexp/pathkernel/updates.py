"""The update algebra of optimisers: each update as a sum over past gradients and past regularisation.

Source: ExPLAIND (Eichin et al. 2026), theorem 3.1 and corollary 3.2; torch.optim's conventions where they differ. With
d_s what enters the running average at step s,

    m_s = decay · m_{s−1} + take_s · d_s
    θ_s − θ_{s+1} = lr_s · p_s ⊙ (gain_s · m_s + direct_s · d_s) + lr_s λ θ_s [decoupled decay only]

    optimiser   d_s           decay   take_s                 gain_s            direct_s       p_s
    AdamW       ∇L_s          β₁      1 − β₁                 1/(1 − β₁^{s+1})  0              1/(√(v̂_{s+1} + ε_r) + ε)
    SGD         ∇L_s + λθ_s   μ       1 − τ (1 at step 0)    1 (μ: Nesterov)   0 (1: Nesterov)  1

so that gradient i counts α_{s,i} = take_i gain_s decay^{s−i} + direct_s [i = s] times in update s, and the decay of
SGD goes through the buffer as the gradients do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.runtime.errors import UserError, unknown


@dataclass(frozen=True)
class Coefficients:
    """Scalars of one step in the equation above."""

    decay: float
    take: float
    gain: float
    direct: float


class Optimiser(Protocol):
    """What the decomposition knows of an optimiser; steps count from 0."""

    @property
    def coupled(self) -> bool:
        """Whether weight decay goes through the running average."""

    def coefficients(self, step: int) -> Coefficients:
        """Scalars of a step."""

    def scale(self, step: Step, layout: Layout) -> Tensor:
        """lr_s · p_s [D]."""


@dataclass(frozen=True)
class AdamW:
    """`first` is how many updates the optimiser had made before step 0 of the trajectory; `eps_root` is ε_r."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    first: int = 0
    eps_root: float = 0.0

    @property
    def coupled(self) -> bool:
        """Decoupled: the decay has no momentum."""
        return False

    def coefficients(self, step: int) -> Coefficients:
        """β₁ with its bias correction."""
        decay = self.betas[0]
        return Coefficients(decay, 1 - decay, 1 / (1 - decay ** (self.first + step + 1)), 0.0)

    def scale(self, step: Step, layout: Layout) -> Tensor:
        """lr_s / (√(v̂_{s+1} + ε_r) + ε), with the bias-corrected second moment after the update."""
        if step.second_moment is None:
            raise UserError(f"trajectory: step {step.number} has no second moment, which AdamW's update needs")
        corrected = layout.flat(step.second_moment) / (1 - self.betas[1] ** (self.first + step.number + 1))
        return layout.spread(step.lr, corrected) / self.divisor(corrected)

    def divisor(self, corrected: Tensor) -> Tensor:
        """√(v̂ + ε_r) + ε."""
        return (corrected + self.eps_root).sqrt() + self.eps


@dataclass(frozen=True)
class SGD:
    """Plain (momentum 0) or with momentum μ, dampening τ or Nesterov's form, as torch.optim.SGD."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @property
    def coupled(self) -> bool:
        """The decay is a part of the gradient."""
        return True

    def coefficients(self, step: int) -> Coefficients:
        """As in torch, the first gradient starts the buffer undampened, and without momentum there is no dampening."""
        if self.momentum == 0:
            return Coefficients(0.0, 1.0, 1.0, 0.0)
        take = 1.0 if step == 0 else 1 - self.dampening
        if self.nesterov:
            return Coefficients(self.momentum, take, self.momentum, 1.0)
        return Coefficients(self.momentum, take, 1.0, 0.0)

    def scale(self, step: Step, layout: Layout) -> Tensor:
        """lr_s."""
        return layout.spread(step.lr, layout.flat(step.start))


def optimiser(name: str, **settings: object) -> Optimiser:
    """The algebra of a named optimiser. Errors (UserError): one that has none here."""
    known: dict[str, Callable[..., Optimiser]] = {"adamw": AdamW, "sgd": SGD}
    if name not in known:
        raise unknown("optimiser", name, known, "trajectory: update algebra")
    return known[name](**settings)


class Momentum:
    """Running averages [P, D] of P shares of the gradient, carried forward in time.

    The shares are linear: those of a partition of the training set sum to the whole (corollary F.2).
    """

    def __init__(self, rule: Optimiser, layout: Layout) -> None:
        self.rule, self.layout = rule, layout
        self.average: Tensor | None = None

    def advance(self, step: Step, shares: Tensor) -> Tensor:
        """Take the shares [P, D] of d_s in; returns what each contributes to θ_s − θ_{s+1} [P, D]."""
        now = self.rule.coefficients(step.number)
        self.average = now.take * shares + (0 if self.average is None else now.decay * self.average)
        return self.rule.scale(step, self.layout) * (now.gain * self.average + now.direct * shares)


class Regularisation:
    """r_s, what weight decay contributes to θ_s − θ_{s+1}; steps in order from 0."""

    def __init__(self, rule: Optimiser, layout: Layout) -> None:
        self.layout = layout
        self.momentum = Momentum(rule, layout) if rule.coupled else None

    def advance(self, step: Step) -> Tensor:
        """r_s [D]."""
        share = decay_share(step, self.layout)
        if self.momentum is None:
            return self.layout.spread(step.lr, share) * share
        return self.momentum.advance(step, share[None])[0]


def decay_share(step: Step, layout: Layout) -> Tensor:
    """λθ_s [D]."""
    start = layout.flat(step.start)
    return layout.spread(step.weight_decay, start) * start


def split_update(step: Step, regularisation: Tensor, layout: Layout) -> dict[str, Tensor]:
    """θ_{s+1} − θ_s [D] as a sum of `kernel` and `regularisation` directions.

    The kernel's direction is the recorded difference less the decay, so that the parts sum to the true update.
    """
    whole = layout.flat(step.end) - layout.flat(step.start)
    return {"kernel": whole + regularisation, "regularisation": -regularisation}


def split_recorded(rule: Optimiser, step: Step, average: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """As `split_update` where the steps before are not recorded: `average` is the running average before the update.

    Its share is `first_moment`, which no example can be charged with (remark F.3); what it holds of SGD's earlier decay
    stays in it.
    """
    now, scale = rule.coefficients(step.number), rule.scale(step, layout)
    whole, share = layout.flat(step.end) - layout.flat(step.start), decay_share(step, layout)
    own = scale * (now.gain * now.take + now.direct) if rule.coupled else layout.spread(step.lr, share)
    first, regularisation = -scale * now.gain * now.decay * layout.flat(average), -own * share
    return {"kernel": whole - first - regularisation, "regularisation": regularisation, "first_moment": first}


def simulated_update(
    rule: AdamW,
    start: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    first_moment: Mapping[str, Tensor],
    second_moment: Mapping[str, Tensor],
    *,
    lr: Mapping[str, float],
    weight_decay: Mapping[str, float],
    layout: Layout,
) -> dict[str, Tensor]:
    """One AdamW update from a checkpoint's state by a sampled batch: directions [D] that sum to it (remark F.3).

    `kernel` is the batch's own share, `first_moment` the stored average's, which no example can be charged with.
    `first_moment` and `second_moment` are the optimiser's running averages before the update, after `rule.first`
    updates.
    """
    beta_sq = rule.betas[1]
    now, flat = rule.coefficients(0), layout.flat(gradient)
    corrected = (beta_sq * layout.flat(second_moment) + (1 - beta_sq) * flat**2) / (1 - beta_sq ** (rule.first + 1))
    rate = layout.spread(lr, flat)
    scale = -rate * now.gain / rule.divisor(corrected)
    return {
        "kernel": scale * now.take * flat,
        "first_moment": scale * now.decay * layout.flat(first_moment),
        "regularisation": -rate * layout.spread(weight_decay, flat) * layout.flat(start),
    }
