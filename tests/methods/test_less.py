"""LESS against its equation in float64: AdamW's direction for each example, one checkpoint after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, explicit_gradients, with_state

from tdaexp import influence

NAMES = ["layers.0.mlp.up", "layers.1.attn.v"]
CHOSEN = f"method.components=[{','.join(NAMES)}]"


def adam(gradient: torch.Tensor, m: torch.Tensor | None, v: torch.Tensor, updates: int) -> torch.Tensor:
    """The update of AdamW (β 0.9 and 0.99, ε 1e-3) on one gradient, from averages after so many updates."""
    first, second = torch.zeros_like(gradient) if m is None else m * (1 - 0.9**updates), v * (1 - 0.99**updates)
    first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
    first = gradient if m is None else first / (1 - 0.9 ** (updates + 1))
    return first / ((second / (1 - 0.99 ** (updates + 1))).sqrt() + 1e-3)


def transcribed(problem, momentum: bool) -> np.ndarray:
    """Σ_i η_i cos(∇ℓ(q), Γ(z)) [Q, N, K] by component."""
    total, history = 0.0, problem.history
    for step, rate in history.RATES.items():
        loaded = history.model(step)
        queries, train = (explicit_gradients(loaded, side) for side in (problem.queries, problem.train))
        left, right = [], []
        for name in NAMES:
            m, v = (history.average(step, PARAMETER[name], one).flatten().double() for one in ("first", "second"))
            left.append(torch.stack([row[name] for row in queries]))
            right.append(torch.stack([adam(row[name], m if momentum else None, v, step) for row in train]))
        norms = torch.outer(torch.cat(left, 1).norm(dim=1), torch.cat(right, 1).norm(dim=1))
        total = total + rate * torch.stack([a @ b.T / norms for a, b in zip(left, right, strict=True)], -1).numpy()
    return total


@pytest.mark.parametrize("momentum", [True, False])
def test_scores_are_those_of_the_equation(momentum, make_problem, compose, tmp_path):
    problem = with_state(make_problem(tmp_path, dtype=torch.float64), momentum).after("pretrained")
    found = compose("method=less", CHOSEN).attribute(problem)
    wanted = np.take_along_axis(transcribed(problem, momentum), problem.pairs[..., None], axis=1)
    np.testing.assert_allclose(found["influence"].values, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert found.attrs["momentum"] == momentum and found.attrs["steps"] == [10, 20]
    assert found.attrs["normalise"] == "none"
    one = influence.scores(compose("method=less", CHOSEN, "method.steps=[20]").attribute(problem)).values
    assert not np.allclose(one, influence.scores(found).values)


def test_it_wants_checkpoints_with_their_state(compose):
    method = compose("method=less", "method.part=blocks")
    assert method.wants_checkpoints and method.wants_state and not method.linear and method.of_itself is None
    assert method.label == "less (blocks)"
