"""Projected curvature against the dense oracle: which directions, the small Fisher matrix, d_eff, fused matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import make_examples
from kronecker_oracle import dense, samples_of
from test_factors import EXACT, drawn, fit, layers

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.projected import ProjectedLayer, fit_projected, leading_sides, random_sides
from tdaexp.curvature.projected_layers import ProjectedLayers, component_sketches
from tdaexp.runtime.errors import UserError

DIMENSIONS = 12


def explicit(side) -> torch.Tensor:
    """P [k, O I] of a two-sided sketch, for vec(G) by rows."""
    return torch.kron(side.p_out.double(), side.p_in.double()).T * side.scale


@pytest.mark.parametrize(
    ("variant", "init"), [("gpt_neox-untied", "ekfac"), ("llama-bias", "kfac"), ("bloom-tied", "")]
)
def test_directions_and_the_small_matrix_against_the_dense_oracle(variant, init, models, tmp_path):
    model, examples, whole = models(variant), make_examples(3, 9), layers(models(variant))
    factors = fit(model, examples, tmp_path / "f", init or "ekfac")
    labels, damping = drawn(model, examples, factors), Damping(relative=0.3)
    if init:
        sides = {one.name: leading_sides(factors, one, DIMENSIONS) for one in whole.layers}
    else:
        sides = {one.name: random_sides(one, DIMENSIONS, 0) for one in whole.layers}
    source = samples_of(model, whole, examples, 40)
    fishers = fit_projected(source, sides, 0, 2, tmp_path / "p")
    for layer in whole.layers:
        wanted, side = dense(model, examples, labels, [name for name, _ in layer.members]), sides[layer.name]
        assert side.dim <= DIMENSIONS and (side.k_out, side.k_in) == (side.p_out.shape[1], side.p_in.shape[1])
        spectrum = factors[layer.name].spectrum if init else None
        if init == "kfac":  # the factors' own leading eigenvectors, as spans
            for mine, matrix in ((side.p_out, wanted.s), (side.p_in, wanted.a)):
                theirs = torch.linalg.eigh(matrix).eigenvectors[:, -mine.shape[1] :]
                torch.testing.assert_close(mine @ mine.T, theirs @ theirs.T, rtol=0, atol=1e-7)
        if init == "ekfac":  # no other rows of the rotated gradients are larger
            rotated = (factors[layer.name].q_out.T @ wanted.gradients @ factors[layer.name].q_in).square().mean(0)
            kept = (side.p_out.T @ wanted.gradients).square().sum(2).mean(0)
            torch.testing.assert_close(kept, rotated.sum(1).sort(descending=True).values[: side.k_out], **EXACT)
        projected = wanted.gradients.flatten(1) @ explicit(side).T
        fisher = projected.T @ projected / len(projected)
        torch.testing.assert_close(fishers[layer.name], fisher, **EXACT)
        one = ProjectedLayer(layer, side, fishers[layer.name], len(examples), spectrum)
        mean = float(fisher.trace()) / layer.size if spectrum is None else float(spectrum.mean())
        assert one.amount(damping) == pytest.approx(0.3 * mean, rel=1e-12)
        solved = torch.linalg.solve(fisher + 0.3 * mean * torch.eye(side.dim, dtype=torch.float64), projected.T).T
        torch.testing.assert_close(
            one.solve(projected, damping), solved, rtol=1e-7, atol=1e-9 * float(solved.abs().max())
        )
        values = torch.linalg.eigvalsh(fisher) if spectrum is None else spectrum.flatten()
        assert one.effective(damping) == pytest.approx(float((values / (values + 0.3 * mean)).sum()), rel=1e-6)


def test_the_parts_of_a_fused_matrix_add_up(models):
    whole = layers(models("gpt_neox-untied"))
    fused = next(one for one in whole.layers if len(one.members) == 3)
    side = random_sides(fused, DIMENSIONS, 1)
    one = ProjectedLayer(fused, side, 2 * torch.eye(side.dim, dtype=torch.float64), 9, None)
    part = ProjectedLayers(whole.part([fused.name]), [one])
    gradient = torch.randn(2, fused.outputs, fused.inputs, dtype=torch.float64)
    sketches = component_sketches(part.layers, part.sides)
    sketched = {name: sketches[name].project_gradient(gradient[:, rows].flatten(1)) for name, rows in fused.members}
    total = sum(sketched.values())
    torch.testing.assert_close(total, side.project_gradient(gradient.flatten(1)))
    columns = {name: slice(k * side.dim, (k + 1) * side.dim) for k, name in enumerate(sketched)}
    rows = torch.cat(list(sketched.values()), 1).numpy()
    found = part.preconditioned(columns, Damping(value=1.0), rows)
    np.testing.assert_allclose(found, np.tile(total.numpy() / 3, 3), rtol=1e-12)
    assert part.notes(Damping(value=2.0))["effective_dimension"][1].tolist() == [side.dim / 2] * 3


def of(dimension: int, spectrum: torch.Tensor | None, models) -> ProjectedLayer:
    """A layer of a model in a sketch of so many dimensions, with this spectrum of its own or of the whole."""
    layer = layers(models("llama-bias")).layers[0]
    side = random_sides(layer, dimension, 0)
    fisher = torch.eye(side.dim, dtype=torch.float64)
    return ProjectedLayer(layer, side, fisher, 9, spectrum)


def test_where_a_sketch_is_too_small(models):
    layer = layers(models("llama-bias")).layers[0]
    ones, size = torch.ones(layer.outputs, layer.inputs), layer.size
    assert of(size // 4, ones, models).too_small(Damping(value=1.0))  # half of all directions count
    assert not of(size // 4, ones, models).too_small(Damping(value=9.0))
    assert not of(size, ones, models).too_small(Damping(value=1e-6))  # nothing is left out
    assert of(size // 4, None, models).too_small(Damping(value=0.9))  # its own spectrum is more than half full
    assert not of(size // 4, None, models).too_small(Damping(value=1.1))


def test_a_singular_matrix_without_damping_is_an_error_that_names_the_layer(models):
    one = of(12, None, models)
    one.fisher[0, 0] = 0
    with pytest.raises(
        UserError, match=r"layer 'layers.0.attn.q': .* singular at a damping of 0; set method.relative_d"
    ):
        one.solve(torch.ones(1, one.side.dim, dtype=torch.float64), Damping(value=0.0))
    assert torch.isfinite(one.solve(torch.ones(1, one.side.dim, dtype=torch.float64), Damping(value=0.1))).all()
