"""Measurements m of a query: what about the model's answer is to be explained.

Source: Bao et al. 2025, section 3.2 (m is any differentiable function of the output). Each measurement is larger where
the model makes the answer more likely; `as_loss` turns it into a `Loss` for `capture`, so that a positive influence is
one that helps. A name with a colon, `module:function`, is a function of the user's own (`imported`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tdaexp.objectives.base import Loss
from tdaexp.objectives.own_function import imported
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.errors import unknown

Measurement = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, L, V], targets [B, L] int64, weights [B, L]) to numbers [B], larger = more likely.

Weights are 1 over the number of answer tokens (`reduction=mean`) or 1 (`sum`), and 0 for padding.
"""


def log_likelihood(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Minus the cross-entropy of the completion: the weighted sum of its tokens' log-probabilities."""
    return (_log_probabilities(logits, targets) * weights).sum(1)


def answer_log_probability(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Log-probability of the whole answer: the sum over its tokens, whatever the reduction."""
    return (_log_probabilities(logits, targets) * (weights > 0)).sum(1)


def logit_margin(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of log(p / (1 - p)) of the right tokens: their logit against all others (Park et al. 2023)."""
    wide = logits.to(accumulation_dtype(logits.dtype))
    right = wide.gather(2, targets[..., None])
    others = wide.scatter(2, targets[..., None], -torch.inf).logsumexp(2)
    return ((right[..., 0] - others) * weights).sum(1)


def first_token_logit(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Logit of the answer's first token."""
    return logits[:, 0].to(accumulation_dtype(logits.dtype)).gather(1, targets[:, :1])[:, 0]


def first_token_lead(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Logit of the answer's first token less the largest of all others: positive where that token is the likeliest."""
    wide, first = logits[:, 0].to(accumulation_dtype(logits.dtype)), targets[:, :1]
    return wide.gather(1, first)[:, 0] - wide.scatter(1, first, -torch.inf).amax(1)


MEASUREMENTS: dict[str, Measurement] = {
    one.__name__: one
    for one in (log_likelihood, answer_log_probability, logit_margin, first_token_logit, first_token_lead)
}


def named(name: str) -> Measurement:
    """The measurement of that name, or the function `module:function`. Errors (UserError): unknown, or unfit for it."""
    if ":" in name:
        return imported(name)
    if name not in MEASUREMENTS:
        raise unknown("measurement", name, [*MEASUREMENTS, "module:function"], "method.measurement")
    return MEASUREMENTS[name]


def sources(name: str) -> list[str]:
    """What results depend on beside the measurement's name: the source of a function of the user's own."""
    return [imported(name).source] if ":" in name else []


def as_loss(measurement: Measurement) -> Loss:
    """Minus the measurement."""

    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return -measurement(logits, targets, weights)

    loss.measures = getattr(measurement, "__name__", "")  # type: ignore[attr-defined]
    return loss


def _log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits.to(accumulation_dtype(logits.dtype))
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return -losses.view_as(targets)
