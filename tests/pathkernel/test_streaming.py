"""The streamed decomposition of one simulated update against torch's AdamW, the dense decomposition and exact sums."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.streaming import SimulatedStep, Slab, clear, dots, gradients, integrate, move
from tdaexp.pathkernel.updates import AdamW

LR, BETAS, EPS, MADE = 0.02, (0.9, 0.95), 1e-8, 5
COMPONENTS = {"in": ("0.weight", "0.bias"), "out": ("2.weight", "2.bias")}
NAMES = [name for names in COMPONENTS.values() for name in names]


@pytest.fixture
def case():
    """A smooth network in float64 after five updates of torch's AdamW, and the batch of the sixth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)).double()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    inputs, targets = torch.randn(24, 5, dtype=torch.float64), torch.randint(0, 3, (24,))
    for _ in range(MADE):
        descend(model, optimizer, inputs, targets)
    return model, optimizer, inputs, targets


def descend(model, optimizer, inputs, targets):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def simulated(model, optimizer, inputs, targets):
    """The step as the module knows it, from the optimiser's own state."""
    parameters = dict(model.named_parameters())
    state = {name: optimizer.state[p] for name, p in parameters.items()}
    clear(parameters)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    decay = {name: 0.3 if p.ndim == 2 else 0.0 for name, p in parameters.items()}
    return SimulatedStep(
        AdamW(BETAS, EPS, MADE),
        {name: p.detach().clone() for name, p in parameters.items()},
        gradients(parameters),
        lambda name: (state[name]["exp_avg"].clone(), state[name]["exp_avg_sq"].clone()),
        LR,
        decay,
    )


def loss_of(model, inputs, targets, sign=1.0):
    def total(weight):
        loss = sign * nn.functional.cross_entropy(model(inputs), targets)
        if weight is not None:
            (weight * loss).backward()
        return float(loss.detach())

    return total


def frozen(step):
    """Moments as they are now: the optimiser goes on afterwards."""
    known = {name: tuple(t.clone() for t in step.moments(name)) for name in step.start}
    return SimulatedStep(step.rule, step.start, step.gradient, known.__getitem__, step.lr, step.weight_decay)


def test_the_update_is_torchs_own(case):
    model, optimizer, inputs, targets = case
    step = frozen(simulated(model, optimizer, inputs, targets))
    end = {name: value.clone() for name, value in step.end.items()}
    descend(model, optimizer, inputs, targets)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(end[name], parameter.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(sum(step.parts(name).values()), end[name] - step.start[name], rtol=0, atol=1e-15)


def test_parts_are_those_of_the_dense_decomposition(case):
    """Also of components that are rows of one tensor."""
    model, optimizer, inputs, targets = case
    step = simulated(model, optimizer, inputs, targets)
    held = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 3, (9,))
    parameters = dict(model.named_parameters())
    change = integrate(loss_of(model, *held), parameters, step, Quadrature(nodes=8))
    phi = gradients(parameters)
    slabs = [Slab(k, name) for k, names in enumerate(COMPONENTS.values()) for name in names]
    found = dots(step.parts, phi, slabs, 2)
    layout = Layout.of(parameters, COMPONENTS)
    whole = Step(0, step.start, step.end, {}, {}, torch.empty(0), torch.empty(0))

    def f(values, batch):
        return nn.functional.cross_entropy(functional_call(model, dict(values), (batch[0],)), batch[1])[None, None]

    dense = Decomposer(f, layout, held, Quadrature(nodes=8), mode="reverse")
    by_part = {part: layout.flat({n: step.parts(n)[part] for n in NAMES}) for part in found}
    expected = dense.step(whole, by_part)
    for part, values in zip(by_part, expected.values[:, :, 0, 0], strict=True):
        torch.testing.assert_close(found[part], values, rtol=1e-10, atol=1e-15)
    total = float(sum(value.sum() for value in found.values()))
    assert abs(total - (change.after - change.before)) < 1e-8 * abs(change.after - change.before)
    rows = [Slab(0, "0.weight", torch.tensor([0, 2, 4])), Slab(1, "0.weight", torch.tensor([1, 3, 5, 6]))]
    split = dots(step.parts, phi, rows, 2)
    columns = [Slab(k, "0.weight", torch.tensor(rest), 1) for k, rest in enumerate(([0, 3], [1, 2, 4]))]
    across = dots(step.parts, phi, columns, 2)
    for part in found:
        expected_sum = (step.parts("0.weight")[part] * phi["0.weight"]).sum()
        torch.testing.assert_close(split[part].sum(), expected_sum)
        torch.testing.assert_close(across[part].sum(), expected_sum)
        own = (step.parts("0.weight")[part] * phi["0.weight"])[[0, 2, 4]].sum()
        torch.testing.assert_close(split[part][0], own)
        torch.testing.assert_close(across[part][0], (step.parts("0.weight")[part] * phi["0.weight"])[:, [0, 3]].sum())


def test_the_kernel_is_a_sum_over_examples(case):
    model, optimizer, inputs, targets = case
    step = simulated(model, optimizer, inputs, targets)
    parameters = dict(model.named_parameters())
    for name in parameters:
        shares = []
        for k in range(len(inputs)):
            clear(parameters)
            (nn.functional.cross_entropy(model(inputs[k, None]), targets[k, None]) / len(inputs)).backward()
            shares.append(step.kernel_scale(name) * gradients(parameters)[name])
        torch.testing.assert_close(sum(shares), step.parts(name)["kernel"], rtol=1e-9, atol=1e-13)


def test_nodes_are_added_until_the_residual_is_small(case):
    model, optimizer, inputs, targets = case
    step = simulated(model, optimizer, inputs, targets)
    parameters = dict(model.named_parameters())
    loss = loss_of(model, inputs, targets)
    tight = integrate(loss, parameters, step, Quadrature(rule="left", nodes=1, tolerance=1e-3, most=1024))
    loose = integrate(loss, parameters, step, Quadrature(rule="left", nodes=1, tolerance=0.9, most=64))
    assert loose.nodes == 1 < tight.nodes < 1024
    for name, parameter in parameters.items():  # they are back at θ_s
        assert torch.equal(parameter.detach(), step.start[name])


def test_nodes_are_added_until_entries_are_settled_too(case):
    """By one parameter's own entry, where the residual alone asks for nothing."""
    model, optimizer, inputs, targets = case
    step = simulated(model, optimizer, inputs, targets)
    parameters, loss = dict(model.named_parameters()), loss_of(model, inputs, targets)
    seen: list[torch.Tensor] = []

    def entries():
        seen.append(gradients(parameters)["0.weight"].clone())
        return seen[-1]

    steered = Quadrature(rule="left", nodes=1, tolerance=0.01, most=1024)
    found = integrate(loss, parameters, step, dataclasses.replace(steered, tolerance=0.9), entries)
    assert found.nodes == 2 == 2 ** (len(seen) - 1)  # one count alone has nothing to be held against
    seen.clear()
    integrate(loss, parameters, step, steered, entries)
    moved = [float((b - a).norm() / b.norm()) for a, b in itertools.pairwise(seen)]
    assert moved[-1] <= 0.01 < moved[-2]


def test_a_parameter_that_nothing_reaches_counts_nothing(case):
    model, optimizer, inputs, targets = case
    step = simulated(model, optimizer, inputs, targets)
    parameters = dict(model.named_parameters())
    clear(parameters)
    assert all(not value.any() for value in gradients(parameters).values())
    move(parameters, step, 1.0)
    assert torch.equal(parameters["0.bias"].detach(), step.end["0.bias"])
