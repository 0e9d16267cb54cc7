"""What single entries are off by, as estimated on a few queries, against a float64 path integral of 128 nodes."""

from __future__ import annotations

import pytest
import torch
from recorded import CLASSES, EXAMPLES, RULES, data, layout_of, network, shuffled_batches, train
from torch import nn

from tdaexp.pathkernel.decompose import Decomposer, error_of_sum, looked_at
from tdaexp.pathkernel.kinks import kinked_operation
from tdaexp.pathkernel.outputs import OUTPUTS, example_losses, of_model
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.sweep import Sweep

ASKED = 12  # queries, of which eight are looked at


class Attention(nn.Module):
    """Four tokens of one number each, a head, and a smooth layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key, self.values = nn.Linear(1, 6), *(nn.Linear(6, 6) for _ in range(3))
        self.place, self.read = nn.Parameter(torch.randn(4, 6)), nn.Linear(6, CLASSES)

    def forward(self, inputs):
        hidden = self.embed(inputs.unsqueeze(2)) + self.place
        hidden = hidden + (self.query(hidden) @ self.key(hidden).mT).softmax(-1) @ self.values(hidden)
        return self.read(hidden.mean(1))


def drawn(kind: str) -> nn.Module:
    if kind == "attention":
        torch.manual_seed(0)
        return Attention().double().eval()
    return network(smooth=kind == "gelu")


@pytest.fixture(scope="module", params=["relu", "attention", "gelu"])
def trained(request):
    model = drawn(request.param)
    return request.param, model, train(model, "adamw", list(shuffled_batches())[:4]), data(2, ASKED)


def swept(model, steps, queries, quadrature, *, check=False, sums=False):
    """Entries [K, N, Q, O] summed over all steps, and the errors of those that are looked at."""
    f, rule = of_model(model, OUTPUTS["logits"].read), RULES["adamw"][0]
    sweep = Sweep(
        f, example_losses(model), layout_of(model), rule, queries, quadrature, components=True, check=check,
        sum_queries=sums,
    )  # fmt: skip
    totals: list[torch.Tensor] = []
    for step in reversed(steps):
        one = sweep.step(step, tuple(tensor[step.ids] for tensor in data(1, EXAMPLES)))
        found = (one.train, one.errors)
        totals = totals or [value.new_zeros(len(value), EXAMPLES, *value.shape[2:]) for value in found]
        for total, value in zip(totals, found, strict=True):
            total.index_add_(1, step.ids, value)
    return totals


def share(error, entries) -> float:
    return float(error.norm() / entries.norm())


@pytest.fixture(scope="module")
def integrated(trained):
    """Entries [K, N, Q, O] by the path integral."""
    _, model, steps, queries = trained
    return swept(model, steps, queries, Quadrature("gauss", 128))[0]


@pytest.mark.parametrize("sums", [False, True], ids=["query", "sum of queries"])
def test_entries_of_training_examples_are_off_by_what_is_estimated(trained, integrated, sums):
    _, model, steps, queries = trained
    exact = integrated.sum(2, keepdim=True) if sums else integrated
    for rule in (("secant", 1), ("secant", 2), ("gauss", 1), ("left", 1)):
        values, errors = swept(model, steps, queries, Quadrature(*rule), check=True, sums=sums)
        error = error_of_sum(errors.movedim(2, 0), ASKED) if sums else errors
        true, estimated = share(values - exact, exact), share(error, values if sums else values[:, :, looked_at(ASKED)])
        assert errors.shape == (len(values), EXAMPLES, 8, CLASSES)
        assert true / 2 < estimated < 2 * true, (rule, true, estimated)
        if rule == ("secant", 1):  # complete all along
            assert true > 1e-4
        torch.testing.assert_close(values, swept(model, steps, queries, Quadrature(*rule), sums=sums)[0])


def test_entries_of_components_are_off_by_what_is_estimated(trained):
    _, model, steps, queries = trained
    f, layout = of_model(model, OUTPUTS["logits"].read), layout_of(model)
    fine = Decomposer(f, layout, queries, Quadrature("gauss", 128))
    whole = [(layout.flat(step.end) - layout.flat(step.start))[None] for step in steps]
    exact = [fine.step(step, {"update": one[0]}).values for step, one in zip(steps, whole, strict=True)]
    for rule in (("secant", 1), ("gauss", 1), ("gauss", 4)):
        decomposer, found = Decomposer(f, layout, queries, Quadrature(*rule)), []
        for step, one in zip(steps, whole, strict=True):
            values = decomposer.step(step, {"update": one[0]}).values
            entries, errors = decomposer.entries(step, one, rule[1], values[:, :, decomposer.places])
            again = decomposer.entries(step, one, rule[1])
            torch.testing.assert_close(again, (entries, errors))
            found.append((values, entries, errors))
        values, entries, errors = (torch.stack(one) for one in zip(*found, strict=True))
        true, estimated = share(values - torch.stack(exact), torch.stack(exact)), share(errors, entries)
        if true > 1e-5:  # below, where nodes converge fast, one query of twelve has most of the error
            assert true / 2 < estimated < 2 * true, (rule, true, estimated)


@pytest.mark.parametrize("rule", ["secant", "gauss"])
def test_a_tolerance_holds_the_entries_under_every_rule(trained, rule):
    """By the secant rule the residual is rounding all along: it is the entries that ask for more pieces."""
    _, model, steps, queries = trained
    f, layout, step = of_model(model, OUTPUTS["logits"].read), layout_of(model), steps[0]
    directions = (layout.flat(step.end) - layout.flat(step.start))[None]
    coarse = Decomposer(f, layout, queries, Quadrature(rule))
    coarse.value(step.start)
    entries, errors = coarse.entries(step, directions, 1)
    tolerance = share(errors, entries) / 3
    steered = Decomposer(f, layout, queries, Quadrature(rule, tolerance=tolerance, most=64))
    count = steered.step(step, {"update": directions[0]}).nodes
    entries, errors = steered.entries(step, directions, count)
    assert count > 1 and share(errors, entries) <= tolerance
    capped = Decomposer(f, layout, queries, Quadrature(rule, tolerance=1e-15, most=2))
    assert capped.step(step, {"update": directions[0]}).nodes == 2
    loose = Decomposer(f, layout, queries, Quadrature(rule, tolerance=0.9))
    assert loose.step(step, {"update": directions[0]}).nodes == 1


def test_on_smooth_networks_a_second_node_is_enough_for_a_small_tolerance(trained):
    kind, model, steps, queries = trained
    f, layout = of_model(model, OUTPUTS["logits"].read), layout_of(model)
    start = {name: value.detach() for name, value in model.named_parameters()}
    assert kinked_operation(f, start, queries) == ("relu" if kind == "relu" else None)
    steered = Decomposer(f, layout, queries, Quadrature("auto").chosen(secant=False, smooth=True))
    counts = [steered.step(step, {"all": layout.flat(step.end) - layout.flat(step.start)}).nodes for step in steps]
    assert (max(counts) == 16) if kind == "relu" else (set(counts) <= {1, 2, 4} and max(counts) > 1)


def test_a_few_queries_are_looked_at():
    assert [len(looked_at(count)) for count in (1, 3, 8, 100, 256, 320, 5000)] == [1, 3, 8, 8, 8, 10, 16]
    assert looked_at(16) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert all(len(set(looked_at(count))) == len(looked_at(count)) for count in range(1, 200))


def test_errors_of_a_sum_from_those_of_some_of_its_terms():
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(400, 3000, generator=generator, dtype=torch.float64)
    together = apart + torch.randn(3000, generator=generator, dtype=torch.float64)
    for errors in (apart, together):
        for some in (8, 16):
            said, true = float(error_of_sum(errors[:some], 400)), float(errors.sum(0).norm())
            assert true / 1.8 < said < 1.8 * true
        torch.testing.assert_close(error_of_sum(errors, 400), errors.sum(0).norm())
    assert error_of_sum(torch.tensor([[1.0], [-1.0]]), 2) == 0 < error_of_sum(torch.tensor([[1.0], [-1.0]]), 3)
