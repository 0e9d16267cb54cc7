"""Classifiers and regressors: convolutions by autograd, exact Gauss-Newton cases, leave-one-out by closed form."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.numbers import Numbers
from tdaexp.runtime.errors import UserError

EXACT = dict(rtol=1e-9, atol=1e-12)


def small_cnn() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (2, 3), dilation=(2, 1), bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).double()


def images(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 2, 11, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def samples(model: nn.Module, inputs: torch.Tensor, objective=None, batch: int = 64) -> FisherSamples:
    """Passes with drawn labels over inputs [N, ...], `batch` of them at a time; targets play no part."""
    ids, targets = [f"x{n}" for n in range(len(inputs))], torch.zeros(len(inputs), dtype=torch.int64)
    layers, objective = layers_of(discovered(model)), objective or Classes()
    gradients = Gradients(model, layers.map, TensorExamples(ids, inputs, targets), objective)
    return FisherSamples(gradients, layers, batch * int(gradients.lengths[0]))


class Design(Numbers):
    """Every example with every unit vector (times √O) as output gradient: E[δδᵀ] = I, independent of the input."""

    def sampled(self, logits, inputs, seed, labels):
        count = logits.shape[2]
        unit = torch.eye(count, dtype=torch.float64) * count**0.5
        direction = unit[torch.tensor([int(one[1:]) for one in inputs.ids]) % count]
        return (logits[:, 0] * direction).sum(1), torch.zeros(len(logits), 1, dtype=torch.int64)


def design(model: nn.Module, inputs: torch.Tensor, outputs: int) -> FisherSamples:
    return samples(model, inputs.repeat_interleave(outputs, 0), Design())


def gauss_newton_block(model: nn.Module, inputs: torch.Tensor, names: list[str]) -> torch.Tensor:
    """Mean over examples of Jᵀ J for squared loss, J the Jacobian of the outputs in [weight, bias] row by row."""
    parameters = dict(model.named_parameters())
    block = 0.0
    for x in inputs:
        rows = []
        for k in range(model(x[None]).shape[1]):
            values = torch.autograd.grad(model(x[None])[0, k], [parameters[name] for name in names])
            rows.append(torch.cat([value.reshape(len(values[0]), -1) for value in values], 1).flatten())
        jacobian = torch.stack(rows)
        block = block + jacobian.T @ jacobian
    return block / len(inputs)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_convolutions_against_autograd(batch_size, tmp_path):
    model, x = small_cnn(), images()
    factors = fit_factors(samples(model, x, batch=batch_size), FactorSettings(saves=2), store=tmp_path / "f")
    stored = factors.labels()
    labels = stored[stored >= 0]
    assert labels.shape == (len(x),)
    gradients: dict[str, list[torch.Tensor]] = {"0": [], "2": [], "5": []}
    for image, label in zip(x, labels, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), label.long()[None])
        for name, found in gradients.items():
            own = list(model.get_submodule(name).parameters())
            values = torch.autograd.grad(loss, own, retain_graph=True)
            found.append(torch.cat([value.reshape(len(values[0]), -1) for value in values], 1))
    for name, found in gradients.items():
        one = factors[name]
        stacked = torch.stack(found)
        spectrum = (one.q_out.T @ stacked @ one.q_in).square().mean(0)
        torch.testing.assert_close(one.spectrum, spectrum, **EXACT)
    # A of the first convolution, from patches cut by hand: places as examples, the constant last.
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    patches = [padded[:, :, i : i + 3, j : j + 3].flatten(1) for i in range(0, 11, 2) for j in range(0, 11, 2)]
    rows = torch.cat([torch.cat(patches), torch.ones(len(patches) * len(x), 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(factors.covariance("0").inputs, rows.T @ rows / len(rows), **EXACT)


@pytest.mark.parametrize("mode", ["ekfac", "kfac"])
@pytest.mark.parametrize("depth", [1, 2])
def test_where_the_kronecker_form_is_exact_it_is_the_gauss_newton_block(mode, depth, tmp_path):
    """Squared loss on linear networks: inputs and output gradients of every layer are independent."""
    torch.manual_seed(0)
    widths = [5, 3] if depth == 1 else [5, 4, 3]
    model = nn.Sequential(*[nn.Linear(i, o) for i, o in pairwise(widths)]).double()
    x = torch.randn(30, 5, dtype=torch.float64)
    factors = fit_factors(design(model, x, 3), FactorSettings(mode), store=tmp_path / "f")
    for layer in factors.layers.values():
        block = gauss_newton_block(model, x, [f"{layer.name}.weight", f"{layer.name}.bias"])
        damped = block + 0.05 * torch.eye(len(block), dtype=torch.float64)
        gradient = torch.randn(2, layer.outputs, layer.inputs, dtype=torch.float64)
        wanted = torch.linalg.solve(damped, gradient.flatten(1).T).T.view_as(gradient)
        found = factors.precondition(layer.name, gradient, Damping(0.05))
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


def test_drawn_noise_gives_the_gauss_newton_matrix_of_squared_loss(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x = torch.randn(20_000, 3, dtype=torch.float64)
    source = samples(nn.Sequential(model), x, Numbers(), batch=5000)
    factors = fit_factors(source, FactorSettings("kfac"), store=tmp_path / "f")
    torch.testing.assert_close(factors.covariance("0").outputs, torch.eye(2, dtype=torch.float64), atol=0.03, rtol=0)


def test_influence_is_leaving_one_out_on_ridge_regression(tmp_path):
    """Change of a query's loss when an example is left out and the ridge solution is computed again."""
    rng = np.random.default_rng(0)
    n, width, ridge = 80, 6, 2.0
    x = np.c_[rng.normal(size=(n, width)) * np.array([3, 2, 1, 1, 0.5, 0.2]), np.ones(n)]
    y = x @ rng.normal(size=width + 1) + 0.5 * rng.normal(size=n)
    query = np.c_[rng.normal(size=(5, width)), np.ones(5)]
    target = query @ rng.normal(size=width + 1)

    def solve(rows):
        return np.linalg.solve(x[rows].T @ x[rows] + ridge * np.eye(width + 1), x[rows].T @ y[rows])

    def losses(weights):
        return 0.5 * (query @ weights - target) ** 2

    whole = solve(np.arange(n))
    change = np.stack([losses(solve(np.delete(np.arange(n), i))) - losses(whole) for i in range(n)], 1)
    model = nn.Sequential(nn.Linear(width, 1)).double()
    with torch.no_grad():
        model[0].weight[:] = torch.from_numpy(whole[:-1])
        model[0].bias[:] = whole[-1]
    factors = fit_factors(design(model, torch.from_numpy(x[:, :-1]), 1), FactorSettings(), store=tmp_path / "f")
    gradients = ((query @ whole - target)[:, None] * query)[:, None]
    ready = factors.precondition("0", torch.from_numpy(gradients), Damping(ridge / n))[:, 0]
    influence = ready.numpy() @ ((x @ whole - y)[:, None] * x).T / n
    for found, wanted in zip(influence, change, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.99
    # The scale is right too: first order in 1/n.
    assert np.abs(influence / change - 1).mean() < 0.15


class Twice(nn.Module):
    """A layer after itself, as only a probe could tell."""

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(torch.relu(self.one(x)))


def test_a_layer_that_runs_twice_is_refused(tmp_path):
    one = nn.Linear(3, 3)
    model = nn.Sequential(nn.Linear(3, 3), Twice(one), nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"'1\.one' runs more than once"):
        fit_factors(samples(model, torch.randn(4, 3)), FactorSettings(), store=tmp_path / "f")


def test_a_faulty_image_is_named(tmp_path):
    x = images()
    x[4, 1, 3, 3] = float("nan")
    source = samples(small_cnn(), x, batch=3)
    with pytest.raises(UserError, match=r"layer '0': an activation of example 'x4' is nan"):
        fit_factors(source, FactorSettings(), store=tmp_path / "f")
