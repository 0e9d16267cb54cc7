"""The reverse sweep against the double sum with a stored momentum of every training example."""

from __future__ import annotations

import pytest
import torch
from recorded import (
    CLASSES,
    EXAMPLES,
    QUERIES,
    RULES,
    brute_force_momentum,
    data,
    layout_of,
    network,
    output_gradient,
    pairs,
    train,
)

from tdaexp.pathkernel import decompose
from tdaexp.pathkernel.outputs import OUTPUTS, example_losses, of_model
from tdaexp.pathkernel.parameters import between
from tdaexp.pathkernel.quadrature import Quadrature, nodes
from tdaexp.pathkernel.sweep import Sweep

RULE = Quadrature("gauss", 3)
every_optimiser = pytest.mark.parametrize("name", RULES)


def swept(model, steps, name, *, queries=None, output="logits", counted=lambda step: True, quadrature=RULE, **settings):
    """Totals by training example [K, N, Q, O], by regularisation and of the updates [K, Q, O], and the residual."""
    inputs, targets = data(1, EXAMPLES)
    f = of_model(model, OUTPUTS[output].read)
    queries = data(2, QUERIES) if queries is None else queries
    sweep = Sweep(f, example_losses(model), layout_of(model), RULES[name][0], queries, quadrature, **settings)
    train_total, rest = 0.0, [0.0, 0.0, 0.0]
    for step in reversed(steps):
        one = sweep.step(step, (inputs[step.ids], targets[step.ids]), counted(step))
        placed = one.train.new_zeros(len(one.train), EXAMPLES, *one.train.shape[2:])
        train_total = train_total + placed.index_add_(1, step.ids, one.train)
        rest = [total + value for total, value in zip(rest, (one.regularisation, one.whole, one.residual), strict=True)]
    return train_total, *rest


def brute_force_features(model, steps, layout):
    """φ_test [steps, Q, O, D] by torch.autograd alone."""
    f, batch = of_model(model, OUTPUTS["logits"].read), data(2, QUERIES)
    found = torch.zeros(len(steps), QUERIES, CLASSES, layout.size, dtype=torch.float64)
    for number, step in enumerate(steps):
        for position, weight in zip(*nodes("gauss", 3), strict=True):
            for query, column in pairs(QUERIES, CLASSES):
                gradient = output_gradient(f, between(step, position), batch, layout, query, column)
                found[number, query, column] += weight * gradient
    return found


@every_optimiser
def test_single_columns_are_those_of_the_double_sum(name):
    """Three epochs in orders of their own, whose last batch is smaller than the others."""
    model = network()
    steps, layout = train(model, name), layout_of(model)
    assert {len(step.ids) for step in steps} == {3, 4} and len(steps) == 9
    features, momenta = brute_force_features(model, steps, layout), brute_force_momentum(model, name, steps, layout)
    wanted = -torch.einsum("sqod,snd->nqo", features, momenta)
    for memory in (2**20, 3000):  # 3000: a few gradients at a time
        found, *_ = swept(model, steps, name, memory=memory)
        for example in range(EXAMPLES):
            scale = wanted[example].abs().max()
            assert scale > 1e-4
            torch.testing.assert_close(found[0, example], wanted[example], rtol=0, atol=1e-11 * float(scale))
    by_component, *_ = swept(model, steps, name, components=True)
    for number, place in enumerate(layout.slices):
        part = -torch.einsum("sqod,snd->nqo", features[..., place], momenta[..., place])
        torch.testing.assert_close(by_component[number], part, rtol=1e-9, atol=1e-13)


@every_optimiser
def test_columns_by_a_range_of_steps(name):
    model = network()
    steps, layout = train(model, name), layout_of(model)
    features, momenta = brute_force_features(model, steps, layout), brute_force_momentum(model, name, steps, layout)
    chosen = slice(4, 6)
    wanted = -torch.einsum("sqod,snd->nqo", features[chosen], momenta[chosen])
    found, *_ = swept(model, steps, name, counted=lambda step: 4 <= step.number < 6)
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-13)


@every_optimiser
@pytest.mark.parametrize("output", ["logits", "loss"])
def test_examples_and_decay_sum_to_the_change(name, output):
    """One output of one query takes forward mode over the examples' losses; many take the examples' gradients."""
    model = network()
    steps = train(model, name)
    f = of_model(model, OUTPUTS[output].read)
    for rows in (slice(0, 1), slice(None)):
        queries = tuple(tensor[rows] for tensor in data(2, QUERIES))
        change = (f(steps[-1].end, queries) - f(steps[0].start, queries)).detach()
        for components in (False, True):
            train_total, decay, whole, residual = swept(
                model, steps, name, queries=queries, output=output, components=components,
                quadrature=Quadrature("gauss", 8),
            )  # fmt: skip
            torch.testing.assert_close(train_total.sum((0, 1)) + decay.sum(0), change, rtol=0, atol=1e-9)
            torch.testing.assert_close(train_total.sum(1) + decay, whole, rtol=0, atol=1e-11)
            torch.testing.assert_close(whole.sum(0) + residual, change, rtol=0, atol=1e-12)
            assert decay.abs().max() > 1e-3


def test_a_query_does_not_depend_on_the_others():
    model = network()
    steps = train(model, "adamw")
    alone, *_ = swept(model, steps, "adamw", queries=tuple(tensor[[3]] for tensor in data(2, QUERIES)))
    together, *_ = swept(model, steps, "adamw")
    torch.testing.assert_close(together[:, :, [3]], alone, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_sum_over_queries_is_swept_as_one(monkeypatch, pieces):
    model = network()
    steps = train(model, "momentum")
    whole = swept(model, steps, "momentum", components=True)
    monkeypatch.setattr(decompose, "INPUTS", 4 * QUERIES // pieces)  # a query has four numbers
    summed = swept(model, steps, "momentum", components=True, sum_queries=True)
    for one, two in zip(summed, whole, strict=True):
        torch.testing.assert_close(one, two.sum(-2, keepdim=True), rtol=1e-10, atol=1e-14)


def test_going_on_from_a_saved_carry_gives_the_same_bits():
    model = network()
    steps, layout, (inputs, targets) = train(model, "adamw"), layout_of(model), data(1, EXAMPLES)

    def sweep():
        f = of_model(model, OUTPUTS["logits"].read)
        return Sweep(f, example_losses(model), layout, RULES["adamw"][0], data(2, QUERIES), RULE)

    def run(one, part):
        return [one.step(step, (inputs[step.ids], targets[step.ids])).train for step in part]

    straight, first, second = sweep(), sweep(), sweep()
    wanted = run(straight, steps[::-1])
    run(first, steps[:4:-1])
    second.carry = first.carry.clone()
    for one, two in zip(run(second, steps[4::-1]), wanted[4:], strict=True):
        assert torch.equal(one, two)
