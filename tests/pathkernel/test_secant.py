"""The secant rule: complete on networks with kinks, exact where closed forms exist, and near to the path's integral."""

from __future__ import annotations

import pytest
import torch
from recorded import EXAMPLES, QUERIES, RULES, data, layout_of, network, train
from torch import nn

from tdaexp.models.grokking import Grokking, GrokkingTransformer
from tdaexp.models.resnet9 import Network, ResNet9
from tdaexp.pathkernel.decompose import Decomposer
from tdaexp.pathkernel.outputs import OUTPUTS, activation, example_losses, of_model
from tdaexp.pathkernel.parameters import Layout, Step, between
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.pathkernel.reverse import output_gradients
from tdaexp.pathkernel.secant import NoRule, secant, smooth_operation
from tdaexp.pathkernel.sweep import Sweep


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def resnet(**settings) -> nn.Module:
    model = Network(ResNet9(width=8, **settings), 1, 5)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    return model


def transformer(**settings) -> nn.Module:
    return GrokkingTransformer(Grokking(hidden=8, heads=2, inner=16, **settings), 5)


NETWORKS = {
    "cnn": cnn,
    "resnet": resnet,
    "resnet of smooth operations": lambda: resnet(norm="group", activation="gelu"),
    "transformer": lambda: transformer(norm=True),
    "tied transformer": lambda: transformer(tied_heads=True, scale_embedding=True, activation_after=True),
}


def drawn(name: str, size: float, dtype=torch.float64):
    """A network, a step as long as `size` times each tensor's own spread, and four queries."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype).eval()
    start = {key: value.detach() for key, value in model.named_parameters()}
    moved = {key: value + size * (value.std() + 0.1) * torch.randn_like(value) for key, value in start.items()}
    former = "transformer" in name
    inputs = torch.randint(0, 5, (4, 4)) if former else torch.randn(4, 1, 12, 12, dtype=dtype)
    return model, Step(0, start, moved, {}, {}, torch.empty(0), torch.empty(0)), (inputs, torch.randint(0, 5, (4,)))


def decomposed(model, step, batch, f, quadrature, mode="auto"):
    layout = layout_of(model)
    whole = layout.flat(step.end) - layout.flat(step.start)
    return Decomposer(f, layout, batch, quadrature, mode=mode).step(step, {"one": 0.3 * whole, "two": 0.7 * whole})


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_networks_with_kinks_are_complete_for_long_steps(name, mode):
    model, step, batch = drawn(name, 0.5)
    found = decomposed(model, step, batch, of_model(model, OUTPUTS["logits"].read), Quadrature("secant"), mode)
    rough = decomposed(model, step, batch, of_model(model, OUTPUTS["logits"].read), Quadrature("midpoint"), mode)
    assert found.residual.abs().max() < 1e-13 * found.after.abs().max()
    assert rough.residual.abs().max() > 0.01 * found.after.abs().max()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_output_is_complete(kind):
    model, step, batch = drawn("cnn", 0.5)
    found = decomposed(model, step, batch, of_model(model, OUTPUTS[kind].read), Quadrature("secant"))
    assert found.residual.abs().max() < 1e-13 < 1e-4 < found.values.sum((0, 1)).abs().max()


@pytest.mark.parametrize("name", ["resnet of smooth operations", "transformer", "tied transformer"])
def test_smooth_operations_are_complete_by_nodes_of_their_own(name):
    model, step, batch = drawn(name, 0.02)
    f = of_model(model, OUTPUTS["logits"].read)
    assert decomposed(model, step, batch, f, Quadrature("secant")).residual.abs().max() < 1e-12
    assert decomposed(model, step, batch, f, Quadrature("midpoint")).residual.abs().max() > 1e-7


def test_activations_inside_are_complete():
    model, step, batch = drawn("cnn", 0.5)
    assert decomposed(model, step, batch, activation(model, "3"), Quadrature("secant")).residual.abs().max() < 1e-14


def test_single_precision_is_complete_to_its_rounding():
    model, step, batch = drawn("resnet", 0.5, torch.float32)
    found = decomposed(model, step, batch, of_model(model, OUTPUTS["loss"].read), Quadrature("secant"))
    assert found.residual.dtype == torch.float32 and found.residual.abs().max() < 3e-5


def derivative(function, start, end):
    """∇̄ of a function of one vector."""
    ends = [{"x": torch.tensor(x, dtype=torch.float64)} for x in (start, end)]
    f = secant(lambda p, _: function(p["x"]).reshape(1, 1), *ends)
    layout = Layout.of(ends[0], {"x": ("x",)})
    return output_gradients(f, ends[0], layout, (torch.zeros(1, 1),))["x"].flatten().tolist()


@pytest.mark.parametrize(
    ("start", "end", "wanted"), [(1, 3, 1), (-1, -3, 0), (-1, 3, 0.75), (3, -1, 0.75), (0, 0, 0), (0, 2, 1), (0, -2, 0)]
)
def test_a_relu_is_open_for_the_share_of_the_line_above_zero(start, end, wanted):
    assert derivative(torch.relu, [float(start)], [float(end)]) == [wanted]


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        ([5, 0, 1], [6, 1, 2], [1, 0, 0]),
        ([3, 0, -9], [0, 1, -9], [0.75, 0.25, 0]),  # 3 - 3t = t at t = 3/4
        ([0, 3, -9], [1, 0, -9], [0.25, 0.75, 0]),
        ([2, 2, 0], [2, 2, 0], [1, 0, 0]),
    ],
)
def test_a_maximum_goes_over_where_two_lines_cross(start, end, wanted):
    start, end = ([float(x) for x in values] for values in (start, end))
    pooled = lambda x: nn.functional.max_pool2d(x.reshape(1, 1, 1, 3), (1, 3))  # noqa: E731
    for maximum in (pooled, lambda x: x.amax(), lambda x: x.reshape(3, 1).amax(0, keepdim=True)):
        assert derivative(maximum, start, end) == pytest.approx(wanted, abs=1e-15)


def test_products_take_the_middle_of_both_factors():
    assert derivative(lambda x: x[0] * x[1], [1.0, 2.0], [3.0, 8.0]) == pytest.approx([5.0, 2.0])
    assert derivative(lambda x: (2 - x[0]) / 4 - x[1], [1.0, 2.0], [3.0, 8.0]) == pytest.approx([-0.25, -1.0])


def test_it_is_the_path_integral_where_one_layer_below_the_kinks_moves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    start = {name: value.detach() for name, value in model.named_parameters()}
    end = {name: value + (torch.randn_like(value) if name[0] == "0" else 0) for name, value in start.items()}
    step = Step(0, start, end, {}, {}, torch.empty(0), torch.empty(0))
    batch = (torch.randn(6, 4, dtype=torch.float64), torch.zeros(6, dtype=torch.long))
    layout = Layout.of(start, {name: (name,) for name in start})
    f, whole = of_model(model, OUTPUTS["logits"].read), layout.flat(end) - layout.flat(start)
    found, rough = (
        Decomposer(f, layout, batch, Quadrature(rule)).step(step, {"all": whole}).values[0]
        for rule in ("secant", "midpoint")
    )
    weight, bias = (end[name] - start[name] for name in ("0.weight", "0.bias"))
    inside = [batch[0] @ values["0.weight"].mT + values["0.bias"] for values in (start, end)]
    times = (torch.arange(20_000, dtype=torch.float64) + 0.5)[:, None, None] / 20_000
    fine = torch.stack([part * ((1 - times) * inside[0] + times * inside[1] > 0).double().mean(0)
                        for part in (batch[0] @ weight.mT, bias)]) @ start["2.weight"].mT  # fmt: skip
    torch.testing.assert_close(found[:2], fine, rtol=0, atol=1e-4)
    assert (rough[:2] - fine).abs().max() > 0.1 and not found[2:].any()


def test_components_are_nearer_to_the_path_integral_than_at_one_node():
    model, step, batch = drawn("cnn", 0.1)
    f = of_model(model, OUTPUTS["logits"].read)
    fine = decomposed(model, step, batch, f, Quadrature("midpoint", 400)).values.sum(0)
    error = {
        rule: (decomposed(model, step, batch, f, Quadrature(*rule)).values.sum(0) - fine).norm() / fine.norm()
        for rule in (("secant", 1), ("secant", 4), ("midpoint", 1))
    }
    assert error["secant", 1] < error["midpoint", 1] / 2 and error["secant", 4] < error["secant", 1] / 2


def test_training_examples_are_nearer_to_the_path_integral_and_complete():
    model, queries = network(smooth=False), data(2, 40)
    steps, found = train(model, "adamw"), {}
    f = of_model(model, OUTPUTS["logits"].read)
    for rule in (("secant", 1), ("midpoint", 1), ("midpoint", 100)):
        sweep = Sweep(f, example_losses(model), layout_of(model), RULES["adamw"][0], queries, Quadrature(*rule))
        total = torch.zeros(EXAMPLES, 40, 3, dtype=torch.float64)
        for step in reversed(steps):
            one = sweep.step(step, tuple(tensor[step.ids] for tensor in data(1, EXAMPLES)))
            total.index_add_(0, step.ids, one.train[0])
            assert rule[0] != "secant" or one.residual.abs().max() < 1e-14
        found[rule] = total
    fine = found["midpoint", 100]
    assert (found["secant", 1] - fine).norm() < (found["midpoint", 1] - fine).norm() / 2
    assert torch.corrcoef(torch.stack([found["secant", 1].flatten(), fine.flatten()]))[0, 1] > 0.999


def test_it_tends_to_the_gradient_in_second_order_where_f_is_smooth():
    model, batch = network(), data(2, QUERIES)
    layout, f = layout_of(model), of_model(model, OUTPUTS["loss"].read)
    start = {name: value.detach() for name, value in model.named_parameters()}
    direction = {name: torch.randn_like(value) for name, value in start.items()}
    errors = []
    for size in (0.02, 0.01):
        end = {name: value + size * direction[name] for name, value in start.items()}
        middle = between(Step(0, start, end, {}, {}, torch.empty(0), torch.empty(0)), 0.5)
        pair = (layout.flat(output_gradients(g, middle, layout, batch)) for g in (secant(f, start, end), f))
        errors.append(float(next(pair).sub(next(pair)).norm()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


class Opaque(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values):
        return values.relu()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(output)

    @staticmethod
    def backward(context, gradient):
        return gradient * (context.saved_tensors[0] > 0)


REFUSED = {
    "cumsum": lambda x: x.cumsum(1),
    "relu": lambda x: nn.functional.relu(x, inplace=True),
    "pow": lambda x: x**2,
    "div": lambda x: x / x.sum(),
    "einsum": lambda x: torch.einsum("qi,qi,qi->qi", x, x, x),
    "batch_norm": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "add_": lambda x: x.add_(1),
    "custom_function_call": Opaque.apply,
    "scaled_dot_product_attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_rule_are_named_and_refused(name):
    parameters, batch = {"w": torch.eye(3)}, (torch.ones(2, 3),)

    def f(given, element):
        return REFUSED[name](element[0] @ given["w"])

    layout = Layout.of(parameters, {"w": ("w",)})
    for attempt in (
        lambda: smooth_operation(f, parameters, batch),
        lambda: output_gradients(secant(f, parameters, parameters), parameters, layout, batch),
    ):
        with pytest.raises(NoRule, match=rf"operation '{name}'.*; choose gauss, midpoint|'relu' in place"):
            attempt()


def test_an_output_that_does_not_come_from_the_parameters_is_refused():
    with pytest.raises(NoRule, match="does not come from the parameters"):
        smooth_operation(lambda given, batch: batch[0], {"w": torch.eye(3)}, (torch.ones(2, 3),))


def test_smooth_operations_are_found():
    found = {name: smooth_operation(*_of(name)) for name in NETWORKS}
    assert found == {
        "cnn": None, "resnet": None, "resnet of smooth operations": "group_norm", "transformer": "softmax",
        "tied transformer": "softmax",
    }  # fmt: skip


def _of(name: str):
    model, step, batch = drawn(name, 0.1)
    return of_model(model, OUTPUTS["loss"].read), step.start, batch
