"""Small trainings with torch's own optimisers, recorded step by step in float64, and brute-force decompositions."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.func import functional_call

from tdaexp.pathkernel.parameters import Layout, Step, by_module
from tdaexp.pathkernel.updates import SGD, AdamW

EXAMPLES, FEATURES, CLASSES, QUERIES = 11, 4, 3, 5


def network(smooth: bool = True) -> nn.Module:
    torch.manual_seed(0)
    kind = nn.GELU if smooth else nn.ReLU
    model = nn.Sequential(nn.Linear(FEATURES, 6), kind(), nn.Linear(6, 5), kind(), nn.Linear(5, CLASSES))
    model[4].weight.data *= 4  # from the start, some classes are likelier than others
    return model.double().eval()


def data(seed: int, count: int):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (count,), generator=generator)


def shuffled_batches(epochs: int = 3, size: int = 4):
    """Batches that cut each epoch's own order: the last of each has three examples, not four."""
    for epoch in range(epochs):
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        yield from order.split(size)


RULES = {
    "adamw": (AdamW((0.7, 0.9)), dict(lr=0.05, betas=(0.7, 0.9), weight_decay=0.3)),
    "plain": (SGD(), dict(lr=0.3, weight_decay=0.1)),
    "momentum": (SGD(0.8), dict(lr=0.2, momentum=0.8, weight_decay=0.1)),
    "dampened": (SGD(0.8, 0.4), dict(lr=0.2, momentum=0.8, dampening=0.4, weight_decay=0.1)),
    "nesterov": (SGD(0.8, nesterov=True), dict(lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1)),
}


def train(model: nn.Module, name: str, batches=None) -> list[Step]:
    """Record a training with a learning rate of its own at each step, and decay on matrices alone."""
    inputs, targets = data(1, EXAMPLES)
    settings = dict(RULES[name][1])
    decay = settings.pop("weight_decay")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    optimiser = kind([dict(params=matrices, weight_decay=decay), dict(params=vectors, weight_decay=0.0)], **settings)
    steps = []
    for number, ids in enumerate(shuffled_batches() if batches is None else batches):
        for group in optimiser.param_groups:
            group["lr"] = settings["lr"] * (1 - 0.07 * number)
        start = state(model)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[ids]), targets[ids]).backward()
        optimiser.step()
        second = None
        if name == "adamw":
            second = {key: optimiser.state[p]["exp_avg_sq"].clone() for key, p in model.named_parameters()}
        rate = settings["lr"] * (1 - 0.07 * number)
        steps.append(
            Step(
                number,
                start,
                state(model),
                {key: rate for key in start},
                {key: decay if value.ndim > 1 else 0.0 for key, value in start.items()},
                ids,
                torch.full((len(ids),), 1 / len(ids), dtype=torch.float64),
                second,
            )
        )
    return steps


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def layout_of(model: nn.Module) -> Layout:
    return Layout.of(dict(model.named_parameters()), by_module(model))


def plain_gradient(model: nn.Module, parameters, inputs, targets, layout: Layout) -> torch.Tensor:
    """Gradient [D] of the sum of losses, by torch.autograd alone."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    loss = nn.functional.cross_entropy(functional_call(model, leaves, (inputs,)), targets, reduction="sum")
    return layout.flat(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))


def output_gradient(f, parameters, batch, layout: Layout, query: int, column: int) -> torch.Tensor:
    """Gradient [D] of one output of one query, by torch.autograd alone."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    value = f(leaves, batch)[query, column]
    return layout.flat(
        dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True))
    )


def brute_force_momentum(model, name: str, steps: list[Step], layout: Layout) -> torch.Tensor:
    """φ_train [steps, examples, D] with a stored momentum of every example: torch's update rules, spelt out anew."""
    inputs, targets = data(1, EXAMPLES)
    settings = RULES[name][1]
    buffers = torch.zeros(EXAMPLES, layout.size, dtype=torch.float64)
    found = []
    for step in steps:
        gradients = torch.zeros_like(buffers)
        for example in step.ids.tolist():
            one = plain_gradient(model, step.start, inputs[[example]], targets[[example]], layout)
            gradients[example] += one / len(step.ids)
        rate = settings["lr"] * (1 - 0.07 * step.number)
        if name == "adamw":
            first, second = settings["betas"]
            buffers = first * buffers + (1 - first) * gradients
            corrected = layout.flat(step.second_moment) / (1 - second ** (step.number + 1))
            found.append(rate * buffers / (1 - first ** (step.number + 1)) / (corrected.sqrt() + 1e-8))
            continue
        momentum, dampening = settings.get("momentum", 0.0), settings.get("dampening", 0.0)
        buffers = gradients if step.number == 0 else momentum * buffers + (1 - dampening) * gradients
        used = gradients + momentum * buffers if settings.get("nesterov") else buffers if momentum else gradients
        found.append(rate * used)
    return torch.stack(found)


def pairs(queries: int, columns: int):
    return itertools.product(range(queries), range(columns))
