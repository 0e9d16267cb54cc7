"""LoGra against a dense transcription in float64: explicit gradients, explicit projections, explicit inverses."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from tiny_problem import explicit_gradients

from tdaexp import influence
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.layers import layers_of
from tdaexp.gradients.passes import fitted_gradients
from tdaexp.runtime.errors import UserError

NAMES = ["layers.0.attn.q", "layers.1.mlp.up"]
CHOSEN = f"method.components=[{','.join(NAMES)}]"


@pytest.fixture
def wide(make_problem, tmp_path):
    """A problem in float64."""
    return make_problem(tmp_path / "cache", dtype=torch.float64)


def drawn_gradients(problem, seed: int = 0) -> dict[str, torch.Tensor]:
    """Gradients [N, O I] of the chosen matrices for labels drawn from the model, one example at a time."""
    layers, found = layers_of(problem.components(NAMES)), {name: [] for name in NAMES}
    samples = FisherSamples(fitted_gradients(problem, layers.map), layers)

    def consume(names, factors, _) -> None:
        for name, one in zip(names, factors, strict=True):
            found[name].append(one.materialise()[0])

    with samples.ready():
        for index in range(len(samples.ids)):
            samples.run([index], NAMES, None, seed, consume)
    return {name: torch.stack(rows) for name, rows in found.items()}


def transcribed(problem, fitted, relative: float) -> np.ndarray:
    """Scores [Q, C, K] by the equation, for the projections that were fitted."""
    sampled = drawn_gradients(problem)
    queries, train = (explicit_gradients(problem.loaded, side) for side in (problem.queries, problem.train))
    columns = []
    for one in fitted.projected:
        name = one.layer.name
        project = torch.kron(one.side.p_out.double(), one.side.p_in.double()).T * one.side.scale
        phi = sampled[name] @ project.T
        fisher = phi.T @ phi / len(phi)
        mean = sampled[name].square().sum(1).mean() if one.spectrum is not None else fisher.trace()
        damped = fisher + relative * mean / one.layer.size * torch.eye(len(fisher), dtype=torch.float64)
        left, right = (torch.stack([row[name] for row in side]) @ project.T for side in (queries, train))
        columns.append((left @ torch.linalg.solve(damped, right.T)).numpy())
    return np.take_along_axis(np.stack(columns, -1), problem.pairs[..., None], axis=1)


@pytest.mark.parametrize("init", ["ekfac", "random"])
@pytest.mark.parametrize("dimensions", [20, 400])
def test_scores_are_those_of_the_equation(init, dimensions, wide, compose):
    method = compose("method=logra", CHOSEN, f"method.init={init}", f"method.dimensions={dimensions}")
    found = method.attribute(wide)
    fitted = method.fit(wide, layers_of(wide.components(NAMES)))
    wanted = transcribed(wide, fitted, 0.1)
    np.testing.assert_allclose(found["influence"].values, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())
    assert found["dimension"].values.tolist() == [one.side.dim for one in fitted.projected]


def test_whole_bases_give_the_exact_inverse_whichever_they_are(wide, compose):
    keys = ["method=logra", CHOSEN, "method.dimensions=400", "method.damping=0.01"]
    found = [compose(*keys, f"method.init={init}").attribute(wide) for init in ("ekfac", "kfac", "random")]
    sampled = drawn_gradients(wide)
    queries, train = (explicit_gradients(wide.loaded, side) for side in (wide.queries, wide.train))
    wanted = 0.0
    for name in NAMES:
        matrix = sampled[name].T @ sampled[name] / len(wide.train)
        inverse = torch.linalg.inv(matrix + 0.01 * torch.eye(len(matrix), dtype=torch.float64))
        left, right = (torch.stack([row[name] for row in side]) for side in (queries, train))
        wanted = wanted + (left @ inverse @ right.T).numpy()
    wanted = np.take_along_axis(wanted, wide.pairs, axis=1)
    for one in found:
        np.testing.assert_allclose(influence.scores(one).values, wanted, rtol=0, atol=1e-8 * np.abs(wanted).max())


def test_redamped_scores_are_those_of_other_runs(wide, compose):
    method = compose("method=logra", CHOSEN, "method.dimensions=20")
    pairs = wide.pairs[[2, 5]].copy()
    pairs[0, 1] = -1
    found = method.redamped(wide, [2, 5], pairs, [0.1, 1.0])
    for factor, scores in zip([0.1, 1.0], found, strict=True):
        other = compose("method=logra", CHOSEN, "method.dimensions=20", f"method.relative_damping={0.1 * factor}")
        wanted = influence.scores(other.attribute(wide)).values[[2, 5]]
        wanted[0, 1] = np.nan
        np.testing.assert_allclose(scores, wanted, rtol=1e-9)


def test_the_run_says_where_the_sketch_is_too_small(problem, compose, caplog):
    with caplog.at_level(logging.INFO):
        compose("method=logra", CHOSEN, "method.dimensions=4").attribute(problem)
    assert "layers.0.attn.q: d_eff " in caplog.text and "4 of 256 dimensions (2 × 2): too small" in caplog.text
    assert "the sketch is too small for this damping in 2 of 2 matrices" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        compose("method=logra", CHOSEN, "method.dimensions=400").attribute(problem)
    assert "the sketch is large enough for this damping in all 2 matrices" in caplog.text


def test_keys_that_make_no_sense_and_labels(compose):
    for keys, message in (
        ("method.init=ekfak", r"unknown init 'ekfak'; did you mean 'ekfac'"),
        ("method.dimensions=0", r"method.dimensions=0: must be at least 1"),
        ("method.relative_damping=-1", r"damping: relative=-1.0 must be a finite number"),
    ):
        with pytest.raises(UserError, match=message):
            compose("method=logra", keys)
    assert compose("method=logra").label == "logra"
    told = compose("method=logra", "method.init=random", "method.dimensions=64", "method.relative_damping=1")
    assert told.label == "logra (random, 64 dimensions, λ 1 × mean)"
