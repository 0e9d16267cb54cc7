"""Small modules with layers of every kind, and their examples' gradients by autograd, one at a time in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes

CLASSES, COUNT = 3, 5


class Calls(nn.Module):
    """A module whose forward pass is a function of its members and of the input."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor], **members: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, one in members.items():
            setattr(self, name, one)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Halved(nn.Linear):
    """A linear layer with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def shared_weight() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, CLASSES))


def run_twice() -> nn.Module:
    one = nn.Linear(4, 4)
    return nn.Sequential(one, nn.Tanh(), one, nn.Tanh(), nn.Linear(4, CLASSES))


def tied() -> nn.Module:
    words = nn.Embedding(CLASSES, 4)
    head = nn.Linear(4, CLASSES, bias=False)
    head.weight = words.weight
    return Calls(
        lambda m, x: m.head(torch.tanh(m.inner(m.words(x).mean(1)))), words=words, inner=nn.Linear(4, 4), head=head
    )


def bare() -> nn.Module:
    inner = Calls(lambda m, x: x * m.scale, scale=nn.Parameter(torch.ones(4)))
    return Calls(
        lambda m, x: torch.tanh(m.first(m.inner(x)) @ m.matrix) @ m.first.weight[:, :CLASSES],
        inner=inner, first=nn.Linear(4, 4), matrix=nn.Parameter(torch.ones(4, 4)),
    )  # fmt: skip


def sequence_first() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)
    return Calls(lambda m, x: m.head(m.layer(x.transpose(0, 1)).mean(0)), layer=layer, head=nn.Linear(4, CLASSES))


def head_of(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


VECTORS, PLACES, SEQUENCES, IMAGES, WORDS = (4,), (2, 3, 4), (5, 4), (2, 6, 6), None
ODD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None, set[str]]] = {
    "bare parameters": (bare, VECTORS, {"parameters", "inner", "first"}),
    "decoded by its embedding": (
        lambda: Calls(
            lambda m, x: nn.functional.linear(torch.tanh(m.inner(m.words(x).mean(1))), m.words.weight),
            words=nn.Embedding(CLASSES, 4), inner=nn.Linear(4, 4),
        ),
        WORDS, {"words"},
    ),
    "convolutions": (
        lambda: head_of(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, (2, 1)), width=18
        ),
        IMAGES, set(),
    ),
    "odd convolutions": (
        lambda: head_of(
            nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 3, padding="same"), nn.Tanh(),
            nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(2, 2, 2), width=50,
        ),
        IMAGES, {"0", "2", "4", "5"},
    ),
    "conv1d": (lambda: head_of(nn.Conv1d(5, 3, 2), nn.Tanh(), width=9), SEQUENCES, {"0"}),
    "shared weight": (shared_weight, VECTORS, {"0", "2"}),
    "run twice": (run_twice, VECTORS, {"0"}),
    "tied": (tied, WORDS, {"words"}),
    "image norms": (
        lambda: head_of(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 2),
            nn.InstanceNorm2d(2, affine=True), width=18,
        ),
        IMAGES, set(),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(4, 4), nn.LayerNorm((5, 4)), nn.RMSNorm(4), nn.Linear(4, 2, bias=False),
            nn.LayerNorm(2, bias=False), nn.Flatten(), nn.BatchNorm1d(10), nn.Linear(10, CLASSES),
        ),
        SEQUENCES, set(),
    ),
    "a norm that runs twice": (
        lambda: Calls(
            lambda m, x: m.b(m.second(m.first(m.a(m.first(x))))),
            a=nn.Linear(4, 4), first=nn.LayerNorm(4), second=nn.LayerNorm(4), b=nn.Linear(4, CLASSES),
        ),
        VECTORS, {"norms"},
    ),
    "encoder": (
        lambda: Calls(
            lambda m, x: m.head(m.layer(x).mean(1)),
            layer=nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), head=nn.Linear(4, CLASSES),
        ),
        SEQUENCES, {"layer.self_attn", "layer.self_attn.out_proj"},
    ),
    "sequence first": (
        sequence_first, SEQUENCES,
        {"layer.self_attn", "layer.self_attn.out_proj", "layer.linear1", "layer.linear2", "norms"},
    ),
    "a flattened batch": (
        lambda: Calls(
            lambda m, x: m.head(torch.tanh(m.inner(x.reshape(-1, 4))).view(len(x), 5, 3).mean(1)),
            inner=nn.Linear(4, 3), head=nn.Linear(3, CLASSES),
        ),
        SEQUENCES, {"inner"},
    ),
    "many axes": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, CLASSES)), PLACES, set()
    ),
    "embedding": (
        lambda: Calls(
            lambda m, x: m.head(torch.tanh(m.words(x) + m.places(torch.arange(x.shape[1]))).mean(1)),
            words=nn.Embedding(CLASSES, 4), places=nn.Embedding(6, 4), head=nn.Linear(4, CLASSES),
        ),
        WORDS, {"places"},
    ),
    "padded embedding": (
        lambda: Calls(
            lambda m, x: m.head(torch.tanh(m.words(x)).mean(1)),
            words=nn.Embedding(CLASSES, 4, padding_idx=0), head=nn.Linear(4, CLASSES),
        ),
        WORDS, {"words"},
    ),
    "own forward": (lambda: nn.Sequential(Halved(4, 4), nn.Tanh(), nn.Linear(4, CLASSES)), VECTORS, {"0"}),
    "weight norm": (
        lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.PReLU(), nn.Linear(4, CLASSES)),
        VECTORS, {"0", "0.parametrizations.weight", "1"},
    ),
    "recurrent": (
        lambda: Calls(
            lambda m, x: m.head(m.inner(x)[0][:, -1]), inner=nn.LSTM(4, 3, batch_first=True), head=nn.Linear(3, CLASSES)
        ),
        SEQUENCES, {"inner"},
    ),
    "by keyword": (
        lambda: Calls(
            lambda m, x: m.head(input=torch.tanh(m.inner(input=x))), inner=nn.Linear(4, 4), head=nn.Linear(4, CLASSES)
        ),
        VECTORS, set(),
    ),
    "an argument that all share": (
        lambda: Calls(
            lambda m, x: m.head(torch.tanh(m.inner(m.start)) * x), inner=nn.Linear(4, 4), head=nn.Linear(4, CLASSES),
            start=nn.Parameter(torch.ones(1, 4)),
        ),
        VECTORS, {"inner", "parameters"},
    ),
}  # fmt: skip
"""Modules by what is odd about them: how they are built, the shape of an input, and the components without a rule."""


def odd_module(name: str) -> tuple[nn.Module, TensorExamples]:
    """A module with random weights and statistics, in float64, and examples for it."""
    build, shape, _ = ODD[name]
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = build().double().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0.3, 0.6)
            for statistic, value in module.named_buffers():
                if statistic.endswith(("running_mean", "running_var")):
                    value.uniform_(0.5, 2)
    inputs = torch.randint(0, CLASSES, (COUNT, 6), generator=generator)
    if shape is not None:
        inputs = torch.randn(COUNT, *shape, generator=generator, dtype=torch.float64)
    targets = torch.arange(COUNT) % CLASSES
    return module, TensorExamples([f"e{k}" for k in range(COUNT)], inputs, targets)


def gradients_of_module(module: nn.Module, examples: TensorExamples) -> Gradients:
    """What is tested: gradients with respect to all that is discovered, from two of the examples."""
    parts = discovered(module, lambda: module(examples.inputs[:2]), 2)
    return Gradients(module, parts, examples, Classes())


def autograd_one_by_one(module: nn.Module, examples: TensorExamples) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Each example's gradients by parameter name, run by itself, and losses [N]."""
    parameters = dict(module.named_parameters())
    rows, losses = [], []
    for one, target in zip(examples.inputs, examples.targets, strict=True):
        loss = nn.functional.cross_entropy(module(one[None]), target[None])
        found = torch.autograd.grad(loss, list(parameters.values()))
        rows.append(dict(zip(parameters, found, strict=True)))
        losses.append(loss.detach())
    return rows, torch.stack(losses)


def component_vector(module: nn.Module, component: Component, gradients: dict[str, Tensor]) -> Tensor:
    """A component's gradient as one vector, a layer's bias being the last column of its matrix."""
    pieces = []
    for part in component.parts:
        layer = module.get_submodule(part.module)
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        names = part.parameters or [f"{part.module}.{name}" for name in own]
        values = [gradients[name] for name in names]
        if part.kind in ("linear", "conv2d"):
            values = [torch.cat([values[0].flatten(1), *(bias[:, None] for bias in values[1:])], dim=1)]
        pieces += [value.flatten() for value in values]
    return torch.cat(pieces)


def dense_ggn_of_module(module: nn.Module, space: VectorSpace, inputs: Tensor) -> Tensor:
    """1/N Σ_i Jᵀ (diag(p) - p pᵀ) J, one example and one logit at a time."""
    parameters = dict(module.named_parameters())
    names = list(space.parameters())
    total = torch.zeros(space.size, space.size, dtype=torch.float64)
    for one in inputs:
        logits = module(one[None])[0]
        rows = [torch.autograd.grad(logit, [parameters[name] for name in names], retain_graph=True) for logit in logits]
        jacobian = space.vectors(
            {name: torch.stack(own) for name, own in zip(names, zip(*rows, strict=True), strict=True)}
        )
        p = torch.softmax(logits.detach(), dim=0)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(inputs)
