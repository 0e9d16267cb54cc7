"""Decompositions by step and component: completeness, and agreement of forward mode, reverse mode and differences."""

from __future__ import annotations

import logging

import pytest
import torch
from recorded import CLASSES, QUERIES, RULES, data, layout_of, network, output_gradient, pairs, train
from torch import nn
from torch.nn.functional import cross_entropy

from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import OUTPUTS, activation, linear, of_model, output
from tdaexp.pathkernel.parameters import Layout, between, by_module
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.updates import Regularisation, split_update
from tdaexp.runtime.errors import UserError


def run(model, steps, name, f, quadrature, mode="auto", queries=None, **settings):
    layout = layout_of(model)
    decomposer = Decomposer(
        f, layout, data(2, QUERIES) if queries is None else queries, quadrature, mode=mode, **settings
    )
    regularisation, before, found = Regularisation(RULES[name][0], layout), None, []
    for step in steps:
        one = decomposer.step(step, split_update(step, regularisation.advance(step), layout), before)
        before = one.after
        found.append(one)
    return found, decomposer


FUNCTIONS = {
    **{name: lambda model, name=name: of_model(model, output(name).read) for name in [*OUTPUTS, "coordinate:1"]},
    "linear": lambda model: of_model(model, linear(torch.eye(CLASSES, dtype=torch.float64)[:2] * 3).read),
    "activation": lambda model: activation(model, "2"),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_smooth_networks_are_decomposed_completely(name, kind):
    model = network()
    steps = train(model, name)
    f = FUNCTIONS[kind](model)
    found, _ = run(model, steps, name, f, Quadrature("gauss", 8))
    batch = data(2, QUERIES)
    change = (f(steps[-1].end, batch) - f(steps[0].start, batch)).detach()
    total = sum(one.values.sum((0, 1)) for one in found)
    assert change.abs().max() > 0.01
    torch.testing.assert_close(total, change, rtol=0, atol=1e-8)
    torch.testing.assert_close(total + sum(one.residual for one in found), change, rtol=0, atol=1e-13)
    assert all(one.values[1].abs().max() > 0 for one in found)  # decay has its share


@pytest.mark.parametrize("kind", ["logits", "margin", "loss", "activation"])
def test_forward_and_reverse_mode_and_autograd_agree(kind):
    model = network()
    steps = train(model, "adamw")
    layout, f, rule = layout_of(model), FUNCTIONS[kind](model), Quadrature("midpoint", 1)
    forward, _ = run(model, steps[:3], "adamw", f, rule, "forward")
    reverse, _ = run(model, steps[:3], "adamw", f, rule, "reverse", memory=1000)  # one query at a time
    regularisation = Regularisation(RULES["adamw"][0], layout)
    for step, one, two in zip(steps, forward, reverse, strict=False):
        torch.testing.assert_close(one.values, two.values, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(one.residual, two.residual, rtol=1e-9, atol=1e-14)
        parts = torch.stack(list(split_update(step, regularisation.advance(step), layout).values()))
        for query, column in pairs(QUERIES, one.after.shape[1]):
            gradient = output_gradient(f, between(step, 0.5), data(2, QUERIES), layout, query, column)
            for number, place in enumerate(layout.slices):
                wanted = parts[:, place] @ gradient[place]
                torch.testing.assert_close(one.values[:, number, query, column], wanted, rtol=1e-10, atol=1e-14)


def test_components_agree_with_finite_differences():
    model = network()
    step = train(model, "momentum")[2]
    layout, f, batch = layout_of(model), of_model(model, OUTPUTS["logits"].read), data(2, QUERIES)
    whole = layout.flat(step.end) - layout.flat(step.start)
    found = Decomposer(f, layout, batch, Quadrature("left", 1)).step(step, {"whole": whole})
    start, size = layout.flat(step.start), 1e-5
    for number, place in enumerate(layout.slices):
        moved = torch.zeros_like(whole)
        moved[place] = whole[place] * size
        ends = [f(layout.named(start + sign * moved), batch) for sign in (1, -1)]
        torch.testing.assert_close(
            found.values[0, number], ((ends[0] - ends[1]) / (2 * size)).detach(), rtol=1e-6, atol=1e-9
        )


def test_a_function_of_the_whole_batch_is_the_mean_of_its_queries():
    model = network()
    steps = train(model, "adamw")[:2]
    single, _ = run(model, steps, "adamw", of_model(model, OUTPUTS["loss"].read), Quadrature("gauss", 2))
    mean = of_model(model, lambda logits, targets: cross_entropy(logits, targets)[None, None])
    for mode in ("forward", "reverse"):
        whole, _ = run(model, steps, "adamw", mean, Quadrature("gauss", 2), mode)
        for one, all_of_them in zip(single, whole, strict=True):
            torch.testing.assert_close(one.values.mean(2, keepdim=True), all_of_them.values, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_query_does_not_depend_on_the_others(mode):
    model = network()
    steps = train(model, "adamw")[:2]
    f, (inputs, targets) = of_model(model, OUTPUTS["log_probabilities"].read), data(2, QUERIES)
    together, _ = run(model, steps, "adamw", f, Quadrature(nodes=2), mode)
    alone, _ = run(model, steps, "adamw", f, Quadrature(nodes=2), mode, queries=(inputs[[3]], targets[[3]]))
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one.values[:, :, [3]], two.values, rtol=1e-12, atol=1e-15)


def test_relu_residuals_fall_with_the_nodes_and_left_sums_are_biased():
    model = network(smooth=False)
    steps = train(model, "adamw")
    f = of_model(model, OUTPUTS["logits"].read)

    def residuals(rule, count):
        found, _ = run(model, steps, "adamw", f, Quadrature(rule, count), queries=data(2, 100))
        return torch.stack([one.residual for one in found])

    mean = [float(residuals("gauss", count).abs().mean()) for count in (1, 4, 16, 64)]
    assert mean[0] > 3 * mean[1] > 6 * mean[2] > 12 * mean[3]
    left = residuals("left", 4).sum(0).abs().mean()
    for rule in ("midpoint", "gauss", "trapezoid"):
        assert residuals(rule, 4).sum(0).abs().mean() < left / 2


def test_the_residual_steers_the_nodes():
    model = network(smooth=False)
    steps = train(model, "adamw")
    f, steered = of_model(model, OUTPUTS["logits"].read), Quadrature(tolerance=0.01, most=64)
    found, _ = run(model, steps, "adamw", f, steered)
    counts, before = [one.nodes for one in found], f(steps[0].start, data(2, QUERIES))
    assert len(set(counts)) > 1
    for one in found:
        assert one.residual.norm() <= 0.01 * (one.after - before).norm() or one.nodes == 64
        before = one.after
    fixed, _ = run(model, steps, "adamw", f, Quadrature(nodes=1))
    wrong = [k for k, count in enumerate(counts) if count > 1]
    assert all(fixed[k].residual.norm() > found[k].residual.norm() for k in wrong)


class NoForwardRule(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values):
        return values.tanh()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(output)

    @staticmethod
    def backward(context, gradient):
        return gradient * (1 - context.saved_tensors[0] ** 2)


class Tanh(nn.Module):
    def forward(self, values):
        return NoForwardRule.apply(values)


def test_a_module_without_forward_rule_goes_over_to_reverse_mode_and_says_so(caplog):
    model = network()
    steps = train(model, "adamw")[:2]
    model[1], usual = Tanh(), network()
    usual[1] = nn.Tanh()
    f = of_model(model, OUTPUTS["logits"].read)
    with caplog.at_level(logging.WARNING):
        found, decomposer = run(model, steps, "adamw", f, Quadrature("gauss", 8), "forward")
    assert decomposer.mode == "reverse" and caplog.text.count("no forward-mode rule") == 1
    wanted, _ = run(usual, steps, "adamw", of_model(usual, OUTPUTS["logits"].read), Quadrature("gauss", 8), "forward")
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.values, two.values, rtol=1e-11, atol=1e-14)


def test_the_cheaper_mode_is_chosen_by_counting(monkeypatch):
    from tdaexp.pathkernel import decompose

    used = []
    for kind in ("forward_products", "reverse_products"):
        real = getattr(decompose, kind)
        monkeypatch.setattr(decompose, kind, lambda *a, real=real, kind=kind: (used.append(kind), real(*a))[1])
    model = network()
    steps = train(model, "adamw")[:1]
    run(model, steps, "adamw", of_model(model, OUTPUTS["loss"].read), Quadrature(nodes=1))
    many = of_model(model, linear(torch.randn(40, CLASSES, dtype=torch.float64)).read)
    run(model, steps, "adamw", many, Quadrature(nodes=1))
    assert used == ["reverse_products", "forward_products"]


def test_bad_input_is_told_in_one_line():
    model = network()
    parameters = dict(model.named_parameters())
    with pytest.raises(UserError, match=r"'0.weight' is in two"):
        Layout.of(parameters, {"a": ("0.weight",), "b": ("0.weight", "0.bias")})
    with pytest.raises(UserError, match=r"no parameter 'head'"):
        Layout.of(parameters, {"a": ("head",)})
    assert list(by_module(model)) == ["0", "2", "4"]
    with pytest.raises(UserError, match="did you mean 'margin'"):
        output("margins")
    with pytest.raises(UserError, match="unknown module 'layer'"):
        activation(model, "layer")
    with pytest.raises(UserError, match="unknown mode"):
        Decomposer(of_model(model, OUTPUTS["logits"].read), layout_of(model), data(2, 1), mode="backward")
