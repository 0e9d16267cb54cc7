"""Curvature over several moments of a training, and that of scaled gradients, against dense sums in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from module_oracle import gradients_of_module, odd_module
from torch import nn

from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.lambdas import form
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.scaled import fit_scaled
from tdaexp.curvature.segment_samples import SegmentSamples
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.history import Moment
from tdaexp.models.discovery import discovered
from tdaexp.objectives.numbers import Numbers
from tdaexp.runtime.errors import UserError

NAMES = ["convolutions", "encoder"]
CLOSE = {"rtol": 1e-9, "atol": 1e-14}


def moved(model: nn.Module, by: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by)
    return other


@pytest.fixture(params=NAMES)
def setting(request):
    """Gradients of five examples, layers, and two moments of a training."""
    model, examples = odd_module(request.param)
    model.requires_grad_(False)
    gradients = gradients_of_module(model, examples)
    layers = layers_of(gradients.components)
    moments = [Moment(step, 1.0, f"at {step}", partial(moved, model, by)) for step, by in ((1, 0.1), (2, -0.05))]
    return gradients.of(layers.map), layers, moments


def gradients_at(gradients, layers, moment, seed) -> dict[str, torch.Tensor]:
    """Gradients [N, O, I] of each layer on the labels that are drawn at a moment, one example at a time."""
    samples = FisherSamples(replace(gradients, model=moment.load()), layers, 10**6)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers.names}

    def consume(names, factors, _):
        for name, one in zip(names, factors, strict=True):
            found[name].append(form(one.inputs, one.deltas, one.bias)[0])

    with samples.ready(), torch.no_grad():
        for index in range(len(gradients)):
            samples.run([index], layers.names, None, seed, consume)
    return {name: torch.stack(rows) for name, rows in found.items()}


def test_the_mean_over_moments_in_the_basis_that_they_share(setting, tmp_path):
    gradients, layers, moments = setting
    settings = FactorSettings(seed=4, saves=3)
    fitted = fit_factors(SegmentSamples(moments, gradients, layers, 40), settings, store=tmp_path / "both")
    alone = [
        fit_factors(
            FisherSamples(replace(gradients, model=moment.load()), layers, 10**6),
            FactorSettings(seed=4 + place),
            store=tmp_path / str(place),
        )
        for place, moment in enumerate(moments)
    ]
    rows = [gradients_at(gradients, layers, moment, 4 + place) for place, moment in enumerate(moments)]
    for layer in layers.layers:
        found = fitted.covariance(layer.name)
        for side in ("inputs", "outputs"):
            wanted = sum(getattr(one.covariance(layer.name), side) for one in alone) / 2
            torch.testing.assert_close(getattr(found, side), wanted, **CLOSE)
        one = fitted[layer.name]
        every = torch.cat([own[layer.name] for own in rows])
        torch.testing.assert_close(one.spectrum, (one.q_out.T @ every @ one.q_in).square().mean(0), **CLOSE)


def test_scaled_gradients_have_their_own_bases(setting, tmp_path):
    gradients, layers, moments = setting
    generator = torch.Generator().manual_seed(2)
    scales = {one.name: torch.rand(one.outputs, one.inputs, generator=generator).double() for one in layers.layers}
    source = SegmentSamples(moments, gradients, layers, 40)
    fitted = fit_scaled(source, scales.__getitem__, FactorSettings(seed=1), store=tmp_path / "scaled")
    rows = [gradients_at(gradients, layers, moment, 1 + place) for place, moment in enumerate(moments)]
    for layer in layers.layers:
        every = scales[layer.name] * torch.cat([own[layer.name] for own in rows])
        found, one = fitted.covariance(layer.name), fitted[layer.name]
        torch.testing.assert_close(found.inputs, (every.transpose(1, 2) @ every).mean(0), **CLOSE)
        torch.testing.assert_close(found.outputs, (every @ every.transpose(1, 2)).mean(0), **CLOSE)
        for q, side in ((one.q_in, found.inputs), (one.q_out, found.outputs)):
            rotated = q.T @ side @ q
            torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=1e-9 * float(side.norm()))
        torch.testing.assert_close(one.spectrum, (one.q_out.T @ every @ one.q_in).square().mean(0), **CLOSE)


def test_of_a_matrix_with_one_row_scaled_curvature_is_exact(tmp_path):
    """M = mean of (s ∘ g)(s ∘ g)ᵀ, as a dense matrix."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(20, n, generator=generator).double() for n in (4, 1))
    model = nn.Linear(4, 1).double().requires_grad_(False)
    examples = TensorExamples([f"e{n}" for n in range(20)], inputs, targets)
    layers = layers_of(discovered(model, lambda: model(inputs), 20))
    gradients = Gradients(model, layers.map, examples, Numbers())
    moment = Moment(1, 1.0, "here", lambda: model)
    (name,) = layers.names
    scale = torch.tensor([[0.1, 1.0, 3.0, 0.0, 0.5]], dtype=torch.float64)
    source = SegmentSamples([moment], gradients, layers, 100)
    one = fit_scaled(source, lambda _: scale, FactorSettings(), store=tmp_path / "m")[name]
    rows = (scale * gradients_at(gradients, layers, moment, 0)[name]).flatten(1)
    basis = torch.kron(one.q_out, one.q_in)
    found = basis @ torch.diag(one.spectrum.flatten()) @ basis.T
    torch.testing.assert_close(found, rows.T @ rows / 20, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("setting", NAMES[:1], indirect=True)
def test_a_fit_goes_on_where_it_was_killed(setting, tmp_path, monkeypatch):
    gradients, layers, moments = setting
    settings = FactorSettings(seed=4, saves=4)

    def fit(folder):
        samples = SegmentSamples(moments, gradients, layers, 1)
        return samples, lambda: fit_factors(samples, settings, store=tmp_path / folder)

    whole = fit("whole")[1]()
    samples, killed = fit("killed")
    run, left = samples.run, iter(range(7))

    def until(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(samples, "run", until)
    with pytest.raises(KeyboardInterrupt):
        killed()
    again = fit("killed")[1]()
    for name in layers.names:
        assert torch.equal(again[name].spectrum, whole[name].spectrum)


@pytest.mark.parametrize("setting", NAMES[:1], indirect=True)
def test_an_activation_that_is_not_finite_names_the_example(setting, tmp_path):
    gradients, layers, moments = setting
    broken = [moments[0], Moment(2, 1.0, "broken", partial(moved, gradients.model, float("nan")))]
    with pytest.raises(UserError, match=r"an (activation|output gradient) of example .* is nan"):
        fit_factors(SegmentSamples(broken, gradients, layers, 100), FactorSettings(), store=tmp_path / "nan")
