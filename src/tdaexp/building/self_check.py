"""The check of a loaded model: captured gradients of a few examples against autograd's, component by component.

The examples' losses are weighted by numbers that tell them apart, so that one backward pass gives Σ_i c_i ∇ℓ_i of every
parameter, and a gradient that went to another example is seen. Autograd's gradients come one parameter at a time, and
none is kept: the check takes the memory of the largest component, not of the model.

Cost: two forward and backward passes over `TEXTS` x `LENGTH` tokens, and a few operations on each parameter: 0.02
CPU-seconds on a model of two small layers, 1.5 on one of 166 million parameters (measured), so about 10 on 1 billion.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.examples import Example, Examples
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import Factors, LinearFactors
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.models.components import Component, ComponentMap
from tdaexp.objectives.base import Objective
from tdaexp.runtime.accumulation import accumulation_dtype
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative error of a component's gradient, by the model's type."""
FLOOR = 1e-3
"""A component whose gradient is smaller than this share of the largest one's is judged by that: it may be rounding."""
TEXTS, LENGTH, LONGEST = 2, 8, 256


@dataclass(frozen=True)
class Outcome:
    """What a check found: the largest relative error of the `checked` components, and whose it is; `formed` are those
    that autograd itself forms, `dtype` the model's.
    """

    error: float
    component: str
    checked: int
    formed: int
    dtype: torch.dtype


_outcomes: WeakKeyDictionary[nn.Module, Outcome] = WeakKeyDictionary()


def outcome_of(model: nn.Module) -> Outcome | None:
    """What the last check of this model found; None where it was not checked."""
    return _outcomes.get(model)


def random_texts(vocabulary: int, length: int = LENGTH, classes: int = 0) -> Examples:
    """Examples of random tokens, of two lengths; each predicts its second half, or one of some `classes`."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(TEXTS):
        size = length - number
        tokens = rng.integers(vocabulary, size=size)
        mask = np.arange(size) >= (size - 1 if classes else size // 2)
        if classes:
            tokens[-1] = rng.integers(classes)
        found.append(Example(f"check {number}", tokens, mask, ""))
    return Examples(found)


def check_language_model(
    model: Any, components: ComponentMap, objective: Objective[Any], name: str, classes: int = 0
) -> None:
    """Check a causal model by random texts, long enough that each expert reads some token. Errors as `check`."""
    vocabulary, length = int(model.config.get_text_config().vocab_size), LENGTH
    longest = min(LONGEST, int(getattr(model.config, "max_position_embeddings", None) or LONGEST))
    while True:
        texts = random_texts(vocabulary, min(length, longest), classes)
        idle = check(model, components, objective, texts, name)
        if not any(".experts." in one for one in idle) or length >= longest:
            break
        length *= 2
    if idle:
        log.info("self-check: no gradient of random texts reaches %s", ", ".join(idle[:5]))


def check(model: nn.Module, components: ComponentMap, objective: Objective[Any], examples: Any, name: str) -> list[str]:
    """Compare the components' gradients of the examples' losses with autograd's; returns those that are zero.

    Errors (UserError): a component differs, by its name; `name` is what the model is called.
    """
    ruled = tuple(one for one in components.components if one.captured)  # autograd itself forms the others
    dtype, formed = next(model.parameters()).dtype, len(components) - len(ruled)
    if not ruled:
        _outcomes[model] = Outcome(0.0, "", 0, formed, dtype)
        return []
    gradients = Gradients(model, replace(components, components=ruled), examples, objective)
    members = range(len(examples))
    held: dict[str, Factors] = {}

    def keep(arrived: list[Component], factors: list[Factors]) -> None:
        held.update({one.name: own for one, own in zip(arrived, factors, strict=True)})

    with gradients.ready():
        gradients.capture(members, keep)
    weights = 1.0 + torch.arange(len(members), dtype=torch.float64, device="cpu") / 2
    errors = _errors(gradients, members, weights, held)
    largest = max((wanted for _, wanted in errors.values()), default=0.0)
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    shares = {one: _share(error, max(wanted, FLOOR * largest)) for one, (error, wanted) in errors.items()}
    for component, (error, wanted) in errors.items():
        if not shares[component] <= tolerance:
            relative = error / wanted if wanted else float("inf")
            raise UserError(
                f"{name}: the self-check fails: the captured gradient of the component '{component}' is not autograd's "
                f"(relative error {relative:.3g}, allowed {tolerance:g}), so that its scores would be wrong; try "
                "trainer.precision=float32, or take another model: this one computes something that no rule knows"
            )
    worst = max(shares, key=shares.__getitem__)
    _outcomes[model] = Outcome(shares[worst], worst, len(ruled), formed, dtype)
    return [component for component, (_, wanted) in errors.items() if wanted == 0.0]


def _share(error: float, of: float) -> float:
    return error / of if of else (0.0 if error == 0.0 else float("inf"))


def _errors(
    gradients: Gradients, members: Sequence[int], weights: Tensor, held: dict[str, Factors]
) -> dict[str, tuple[float, float]]:
    """Of each component the norm of the difference to autograd's gradient, and of that gradient."""
    model = gradients.model
    named = dict(model.named_parameters())
    spaces = {
        one.name: VectorSpace(model, replace(gradients.components, components=(one,)))
        for one in gradients.components.components
    }
    waiting = {component: space.names for component, space in spaces.items()}
    chosen = set().union(*waiting.values())
    arrived: dict[str, Tensor] = {}
    found: dict[str, tuple[float, float]] = {}

    def compare(component: str, own: dict[str, Tensor]) -> None:
        wanted = spaces[component].vectors({name: own[name][None] for name in waiting[component]})[0]
        found[component] = _compared(wanted.to(accumulation_dtype(wanted.dtype)), weights, held[component])

    def receive(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        arrived[name], parameter.grad = parameter.grad, None
        for component in [one for one, names in waiting.items() if names <= arrived.keys()]:
            compare(component, arrived)
            del waiting[component]
        for old in arrived.keys() - set().union(*waiting.values()):
            del arrived[old]

    before = {name: named[name].grad for name in chosen}  # what a training left
    with frozen(model), torch.enable_grad():
        for name in chosen:
            named[name].grad = None
        handles = [
            named[name].requires_grad_(True).register_post_accumulate_grad_hook(partial(receive, name))
            for name in chosen
        ]
        try:
            losses = gradients.objective.losses(model, gradients.inputs(members), gradients.loss)
            (losses * weights.to(losses)).sum().backward()
        finally:
            for handle in handles:
                handle.remove()
            for name in chosen:
                named[name].requires_grad_(False).grad = before[name]
    for component, names in waiting.items():  # autograd says nothing of what has no part in the losses
        absent = {name: torch.zeros_like(named[name]) for name in names - arrived.keys()}
        compare(component, {**absent, **arrived})
    return {component: found[component] for component in spaces}


def _compared(wanted: Tensor, weights: Tensor, factors: Factors) -> tuple[float, float]:
    """Norms of the difference of Σ_i c_i G_i to autograd's [size], and of that."""
    if isinstance(factors, LinearFactors):
        inputs, deltas = (one.to(wanted.dtype).flatten(0, 1) for one in (factors.extended_inputs(), factors.deltas))
        deltas = deltas * weights.to(deltas).repeat_interleave(factors.inputs.shape[1])[:, None]
        matrix = wanted.view(deltas.shape[1], inputs.shape[1])
        difference = torch.addmm(matrix, deltas.T, inputs, beta=-1)
    else:
        difference = wanted.neg()
        for number, weight in enumerate(weights.tolist()):
            difference.add_(factors.materialise(slice(number, number + 1))[0], alpha=weight)
    return float(difference.norm()), float(wanted.norm())
