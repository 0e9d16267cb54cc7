"""The update algebra against torch's optimisers, and against fractions worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from recorded import EXAMPLES, RULES, data, layout_of, network, plain_gradient, train

from tdaexp.pathkernel.parameters import Layout, Step
from tdaexp.pathkernel.updates import (
    SGD,
    AdamW,
    Momentum,
    Optimiser,
    Regularisation,
    decay_share,
    optimiser,
    simulated_update,
    split_update,
)
from tdaexp.runtime.errors import UserError


def past_weight(rule: Optimiser, step: int, past: int) -> float:
    """α_{s,i} without the learning rate: how often the gradient of step `past` counts in the update of `step`."""
    now = rule.coefficients(step)
    through = rule.coefficients(past).take * now.gain * now.decay ** (step - past)
    return through + (now.direct if past == step else 0.0)


@pytest.mark.parametrize("name", RULES)
def test_past_gradients_and_decay_sum_to_the_update_of_torch(name):
    model = network()
    steps, layout, rule = train(model, name), layout_of(model), RULES[name][0]
    inputs, targets = data(1, EXAMPLES)
    shares = []
    for step in steps:
        gradient = plain_gradient(model, step.start, inputs[step.ids], targets[step.ids], layout) / len(step.ids)
        shares.append(gradient + (decay_share(step, layout) if rule.coupled else 0))
        past = sum(past_weight(rule, step.number, i) * share for i, share in enumerate(shares))
        update = rule.scale(step, layout) * past
        if not rule.coupled:
            update = update + layout.spread(step.lr, update) * decay_share(step, layout)
        recorded = layout.flat(step.start) - layout.flat(step.end)
        torch.testing.assert_close(update, recorded, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_kernel_and_regularisation_are_what_the_recursions_say(name):
    model = network()
    steps, layout, rule = train(model, name), layout_of(model), RULES[name][0]
    inputs, targets = data(1, EXAMPLES)
    momentum, regularisation = Momentum(rule, layout), Regularisation(rule, layout)
    seen = 0.0
    for step in steps:
        halves = [step.ids[::2], step.ids[1::2]]  # a partition of each batch
        shares = [plain_gradient(model, step.start, inputs[h], targets[h], layout) / len(step.ids) for h in halves]
        kernel = momentum.advance(step, torch.stack(shares))
        parts = split_update(step, regularisation.advance(step), layout)
        torch.testing.assert_close(-kernel.sum(0), parts["kernel"], rtol=1e-10, atol=1e-14)
        seen += float(parts["regularisation"].abs().sum())
    assert seen > 0.01


def one_parameter_pair(number, start, end, lr, decay, second=None):
    def named(values):
        return {"w": torch.tensor([float(value) for value in values], dtype=torch.float64)}

    return Step(
        number, named(start), named(end), {"w": float(lr)}, {"w": float(decay)}, torch.tensor([0]), torch.tensor([1.0]),
        None if second is None else named(second),
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3])
def test_adamw_in_fractions(count):
    """The gradient is (3, 4) with alternating sign, so that v̂ = (9, 16) exactly and its root is rational; ε = 0."""
    beta, second, lr, decay = Fraction(3, 4), Fraction(1, 2), Fraction(1, 10), Fraction(1, 5)
    theta, average, moment = [Fraction(1), Fraction(-2)], [Fraction(0)] * 2, [Fraction(0)] * 2
    rule, layout = AdamW((0.75, 0.5), eps=0.0), Layout({"all": ("w",)}, {"w": torch.Size([2])})
    momentum = Momentum(rule, layout)
    weights = {
        1: [Fraction(1)],
        3: [Fraction(9, 37), Fraction(12, 37), Fraction(16, 37)],  # (1 − β) β^{2−i} / (1 − β³)
    }
    for number in range(count):
        gradient = [Fraction(sign * (-1) ** number) for sign in (3, 4)]
        average = [beta * m + (1 - beta) * g for m, g in zip(average, gradient, strict=True)]
        moment = [second * v + (1 - second) * g * g for v, g in zip(moment, gradient, strict=True)]
        corrected = [v / (1 - second ** (number + 1)) for v in moment]
        assert corrected == [9, 16]
        kernel = [lr * m / (1 - beta ** (number + 1)) / root for m, root in zip(average, (3, 4), strict=True)]
        before, theta = theta, [t - k - lr * decay * t for t, k in zip(theta, kernel, strict=True)]
        step = one_parameter_pair(number, before, theta, lr, decay, moment)
        found = momentum.advance(step, torch.tensor([[float(g) for g in gradient]], dtype=torch.float64))[0]
        np.testing.assert_allclose(found, [float(k) for k in kernel], rtol=4e-16)
        found = Regularisation(rule, layout).advance(step)
        np.testing.assert_allclose(found, [float(lr * decay * t) for t in before], rtol=4e-16)
    got = [past_weight(rule, count - 1, past) for past in range(count)]
    np.testing.assert_allclose(got, [float(w) for w in weights[count]], rtol=4e-16)
    if count == 3:  # by hand: the signs + − + leave (9 − 12 + 16)/37 of the rate
        assert kernel == [Fraction(13, 370)] * 2


@pytest.mark.parametrize("count", [1, 3])
def test_momentum_in_fractions(count):
    """L = (w₁² + 2 w₂²)/2 with decay 1/2 from (1, 1), μ = 1/2, rate 1/4: the buffers by hand."""
    rule, layout = SGD(0.5), Layout({"all": ("w",)}, {"w": torch.Size([2])})
    theta, buffer = [Fraction(1), Fraction(1)], [Fraction(0)] * 2
    decays = [Fraction(0)] * 2
    regularisation = Regularisation(rule, layout)
    for number in range(count):
        before = theta
        entering = [t * (curvature + Fraction(1, 2)) for t, curvature in zip(theta, (1, 2), strict=True)]
        buffer = [b / 2 + d for b, d in zip(buffer, entering, strict=True)]
        decays = [r / 2 + t / 2 for r, t in zip(decays, before, strict=True)]
        theta = [t - b / 4 for t, b in zip(theta, buffer, strict=True)]
        step = one_parameter_pair(number, before, theta, 0.25, 0.5)
        found = regularisation.advance(step)
        assert found.tolist() == [float(r / 4) for r in decays]
        assert split_update(step, found, layout)["kernel"].tolist() == [
            float(-(b - r) / 4) for b, r in zip(buffer, decays, strict=True)
        ]
    by_hand = {1: [Fraction(5, 8), Fraction(3, 8)], 3: [Fraction(-43, 512), Fraction(-173, 512)]}
    assert theta == by_hand[count]


def test_a_simulated_update_is_the_one_that_torch_makes():
    model = network()
    layout, (inputs, targets) = layout_of(model), data(1, EXAMPLES)
    parameters = dict(model.named_parameters())
    optimiser_ = torch.optim.AdamW(model.parameters(), lr=0.03, betas=(0.7, 0.9), weight_decay=0.2)
    for ids in ([0, 1, 2], [3, 4], [5, 6, 7, 8]):
        state = {n: {k: v.clone() for k, v in optimiser_.state[p].items()} for n, p in parameters.items()}
        start = {name: value.detach().clone() for name, value in parameters.items()}
        gradient = plain_gradient(model, start, inputs[ids], targets[ids], layout) / len(ids)
        optimiser_.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[ids]), targets[ids]).backward()
        optimiser_.step()
        if not state["0.weight"]:
            continue
        done = int(state["0.weight"]["step"])
        parts = simulated_update(
            AdamW((0.7, 0.9), first=done),
            start,
            layout.named(gradient),
            {name: one["exp_avg"] for name, one in state.items()},
            {name: one["exp_avg_sq"] for name, one in state.items()},
            lr={name: 0.03 for name in start},
            weight_decay={name: 0.2 for name in start},
            layout=layout,
        )
        moved = layout.flat({name: value.detach() - start[name] for name, value in parameters.items()})
        torch.testing.assert_close(sum(parts.values()), moved, rtol=1e-11, atol=1e-15)
        assert all(part.abs().max() > 1e-4 for part in parts.values())
    assert done == 2


def test_an_optimiser_without_algebra_is_named():
    with pytest.raises(UserError, match=r"unknown optimiser 'adamax'.*adamw, sgd"):
        optimiser("adamax")


def test_adamw_needs_its_second_moment():
    step = one_parameter_pair(4, (1, 1), (1, 1), 0.1, 0.1)
    layout = Layout({"all": ("w",)}, {"w": torch.Size([2])})
    with pytest.raises(UserError, match="step 4 has no second moment"):
        AdamW().scale(step, layout)
