"""Classifiers and regressors: convolutions by autograd, exact Gauss-Newton cases, leave-one-out by closed form."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_source
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.modules import ModuleSource, capture_modules, module_map
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


class Design(ModuleSource):
    """Every example with every unit vector (times √O) as output gradient: E[δδᵀ] = I, independent of the input."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, outputs: int) -> None:
        repeated = inputs.repeat_interleave(outputs, 0)
        super().__init__(model, repeated, [str(n) for n in range(len(repeated))], "gaussian")
        self.outputs = outputs

    def run(self, members, names, labels, seed, consume):
        unit = torch.eye(self.outputs, dtype=torch.float64) * self.outputs**0.5
        direction = unit[torch.tensor(members) % self.outputs]
        capture_modules(self.model, self.inputs[members], names, lambda f: (f * direction).sum(1), consume)
        return torch.zeros(len(members), 1, dtype=torch.int64)


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
    source = ModuleSource(model, x, [f"x{n}" for n in range(len(x))], batch_size=batch_size)
    factors = fit_source(source, FactorSettings(saves=2), store=tmp_path / "f")
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
    factors = fit_source(Design(model, x, 3), FactorSettings(mode), store=tmp_path / "f")
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
    source = ModuleSource(nn.Sequential(model), x, [str(n) for n in range(len(x))], "gaussian", batch_size=5000)
    factors = fit_source(source, FactorSettings("kfac"), store=tmp_path / "f")
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
    factors = fit_source(Design(model, torch.from_numpy(x[:, :-1]), 1), FactorSettings(), store=tmp_path / "f")
    gradients = ((query @ whole - target)[:, None] * query)[:, None]
    ready = factors.precondition("0", torch.from_numpy(gradients), Damping(ridge / n))[:, 0]
    influence = ready.numpy() @ ((x @ whole - y)[:, None] * x).T / n
    for found, wanted in zip(influence, change, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.99
    # The scale is right too: first order in 1/n.
    assert np.abs(influence / change - 1).mean() < 0.15


def test_what_has_no_rule_is_named():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same"), nn.Linear(3, 3)
    )
    components = module_map(model)
    assert dict(zip(components.names, components.sizes, strict=True)) == {"0": 40, "norms": 8, "2": 148, "3": 12}
    assert layers_of(components).names == ["3"]
    assert "skipped: 0 (40), norms (8), 2 (148)" in layers_of(components).components.coverage_line()
    with pytest.raises(UserError, match="components without a factor rule: 0, norms, 2 "):
        layers_of(components, strict=True)
    with pytest.raises(UserError, match="a linear or convolutional layer"):
        layers_of(module_map(nn.BatchNorm2d(3)))


def test_a_layer_that_runs_twice_is_refused(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(self.inner(x).relu())

    source = ModuleSource(Twice(), torch.randn(4, 3), list("abcd"))
    with pytest.raises(UserError, match="layer 'inner' runs more than once"):
        fit_source(source, FactorSettings(), store=tmp_path / "f")
    one = nn.Linear(3, 3)
    with pytest.raises(UserError, match=r"'0.weight' and '2.weight' are one tensor"):
        ModuleSource(nn.Sequential(one, nn.ReLU(), one), torch.randn(4, 3), list("abcd"))


def test_a_faulty_image_is_named(tmp_path):
    x = images()
    x[4, 1, 3, 3] = float("nan")
    source = ModuleSource(small_cnn(), x, [f"x{n}" for n in range(len(x))], batch_size=3)
    with pytest.raises(UserError, match=r"layer '0': an activation of example 'x4' is nan"):
        fit_source(source, FactorSettings(), store=tmp_path / "f")
