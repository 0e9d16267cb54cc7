"""TrackStar against its equation in float64: explicit gradients, V, projections, R and norms."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tiny_problem import PARAMETER, explicit_gradients, with_state, without_state

from tdaexp import influence
from tdaexp.gradients.projection import make_sketch
from tdaexp.runtime.errors import UserError

NAMES = ["layers.0.mlp.up", "layers.1.attn.v"]
CHOSEN = f"method.components=[{','.join(NAMES)}]"


def transcribed(problem, of: str, dimensions: int, mix: float, damping: float) -> np.ndarray:
    """Cosines [Q, N]."""
    sides = [explicit_gradients(problem.loaded, side) for side in (problem.queries, problem.train)]
    found: list[list[torch.Tensor]] = [[], []]
    for name in NAMES:
        queries, train = (torch.stack([row[name] for row in side]) for side in sides)
        below = {
            "adamw": problem.history.average(20, PARAMETER[name], "second").flatten().double().sqrt() + 1e-3,
            "gradients": train.square().mean(0).sqrt() + 1e-4 * train.square().mean().sqrt(),
            "none": torch.ones(train.shape[1], dtype=torch.float64),
        }[of]
        shape = problem.map.select([name]).components[0].matrix
        sketch = make_sketch("factorised", name, shape, dimensions, 0)
        project = torch.kron(sketch.p_out.double(), sketch.p_in.double()) * sketch.scale
        q, z = ((side / below) @ project for side in (queries, train))
        moment = mix * z.T @ z / len(z) + (1 - mix) * q.T @ q / len(q)
        moment = moment + damping * moment.trace() / len(moment) * torch.eye(len(moment), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(moment)
        for side, rows in zip(found, (q, z), strict=True):
            side.append(rows @ vectors @ torch.diag(values**-0.5) @ vectors.T)
    q, z = (torch.nn.functional.normalize(torch.cat(side, 1)) for side in found)
    return (q @ z.T).numpy()


@pytest.mark.parametrize(("of", "dimensions", "mix"), [("adamw", 20, 0.9), ("gradients", 400, 0.5), ("none", 20, 1.0)])
def test_scores_are_those_of_the_equation(of, dimensions, mix, make_problem, compose, tmp_path):
    problem = with_state(make_problem(tmp_path, dtype=torch.float64)).after("pretrained")
    keys = (CHOSEN, f"method.precondition={of}", f"method.dimensions={dimensions}", f"method.mix={mix}")
    found = compose("method=trackstar", *keys, "method.relative_damping=0.2").attribute(problem)
    wanted = np.take_along_axis(transcribed(problem, of, dimensions, mix, 0.2), problem.pairs, axis=1)
    np.testing.assert_allclose(influence.scores(found).values, wanted, rtol=0, atol=1e-6)
    assert found.attrs["precondition"] == of and found.attrs["normalise"] == "cosine"


def test_without_a_state_it_says_that_v_is_estimated(problem, compose, caplog):
    plain = without_state(problem.after("pretrained"))
    with caplog.at_level(logging.INFO):
        found = compose("method=trackstar", CHOSEN).attribute(plain)
    assert "V is estimated from the training examples' gradients: " in caplog.text
    assert found.attrs["precondition"] == "gradients"
    with pytest.raises(UserError, match=r"train it with trainer\.fit\.keep=state"):
        compose("method=trackstar", CHOSEN, "method.precondition=adamw").attribute(plain)
    kept = compose("method=trackstar", CHOSEN).attribute(with_state(plain))
    assert kept.attrs["precondition"] == "adamw"
    assert not np.allclose(influence.scores(kept).values, influence.scores(found).values)


def test_keys_that_make_no_sense_and_labels(problem, compose):
    for keys, message in (
        ("method.precondition=adam", r"unknown precondition 'adam'; did you mean 'adamw'"),
        ("method.mix=2", r"method.mix=2.0: is the share of training gradients, from 0 to 1"),
        ("method.dimensions=0", r"method.dimensions=0: must be at least 1"),
        ("method.relative_damping=-1", r"method.relative_damping=-1.0: must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            compose("method=trackstar", keys)
    with pytest.raises(UserError, match=r"cannot be whitened; set method.relative_damping=0.1"):
        compose("method=trackstar", CHOSEN, "method.relative_damping=0").attribute(problem)
    told = compose("method=trackstar", "method.precondition=none", "method.mix=0.5", "method.relative_damping=1")
    assert told.label == "trackstar (V of none, mix 0.5, λ 1 × mean)"
    assert not told.wants_state and compose("method=trackstar").wants_state
