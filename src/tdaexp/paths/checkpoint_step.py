"""One checkpoint: its simulated update from a sampled batch, and the decomposition of the held-out loss's change.

Source: Eichin et al. 2026, section 6 and remark F.3. Passes run in pieces of at most `tokens_per_batch` padded tokens.
Cost: a forward and a backward pass over the batch, and over the held-out examples one a node and two forward passes;
with groups of the batch another forward and backward pass over it for each group of queries. Where entries are checked,
all but the batch's own pass once more, by a finer rule.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tdaexp.data.examples import Batch, Examples, collate, token_budget_batches
from tdaexp.pathkernel.quadrature import Quadrature, finer
from tdaexp.pathkernel.streaming import (
    PARTS,
    SimulatedStep,
    Slab,
    Total,
    clear,
    dots,
    gradients,
    integrate,
)
from tdaexp.pathkernel.updates import AdamW
from tdaexp.problem import Problem
from tdaexp.runtime.deferred import send
from tdaexp.training.checkpoint_list import Snapshot
from tdaexp.training.history import ListedCheckpoints
from tdaexp.training.optimizer_state import fresh_state, read_state

log = logging.getLogger(__name__)
NUMBERS = ("nodes", "lr", "gradient_norm", "batch_loss")
NORMS = ("entry_norm", "error_norm")
PAIR = ("before", "after", "residual")


@dataclass(frozen=True)
class Plan:
    """What every checkpoint has in common: where components lie (`slabs`), groups, and how to integrate.

    `queries`: group to places of held-out examples, one group of all where queries are summed. `groups` of the batch;
    empty where training examples are summed.
    """

    problem: Problem
    history: ListedCheckpoints
    quadrature: Quadrature
    queries: dict[str, list[int]]
    groups: list[str]
    slabs: list[Slab]

    @property
    def components(self) -> int:
        """K."""
        return len(self.problem.map)

    def arrays(self, count: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and types of what `decompose` gives for `count` checkpoints."""
        width = (count, self.components, len(self.queries))
        kernel = (count, self.components, len(self.groups), len(self.queries))
        shapes: dict[str, tuple[int, ...]] = {**dict.fromkeys(PARTS, width), "kernel": kernel if self.groups else width}
        shapes |= dict.fromkeys(PAIR, (count, len(self.queries))) | dict.fromkeys((*NUMBERS, *NORMS), (count,))
        return {name: (shape, "float64") for name, shape in shapes.items()}


def decompose(plan: Plan, snapshot: Snapshot, check: bool) -> dict[str, np.ndarray]:
    """The parts [K, Q], the kernel's [K, T, Q] with groups of the batch; before, after and residual [Q]; NUMBERS; and
    NORMS, of the kernel's entries and of what they are off by, as estimated: NaN without a `check`.

    As contributions to f = −(sum of the losses of the group's tokens) / (predicted tokens of all held-out examples).
    """
    problem = plan.problem
    model = snapshot.model.load(problem.compute.device, problem.compute.dtype).model.requires_grad_()
    one = _Checkpoint(plan, model, [int(place) for place in plan.history.batch(snapshot, problem.seed)])
    step, numbers = one.simulate(snapshot)
    tokens = _tokens(problem.queries, range(len(problem.queries)))
    found: dict[str, list[Tensor]] = {name: [] for name in (*PARTS, *PAIR)}
    errors: list[Tensor] = []

    def by_component() -> Tensor:
        update = lambda name: {"all": step.end[name] - step.start[name]}  # noqa: E731
        return dots(update, gradients(one.parameters), plan.slabs, plan.components)["all"]

    for places in plan.queries.values():
        loss = one.total(problem.queries, places, tokens)
        change = integrate(loss, one.parameters, step, plan.quadrature, by_component)
        phi = gradients(one.parameters)
        parts = dots(step.parts, phi, plan.slabs, plan.components)
        explained = float(sum(value.sum() for value in parts.values()))
        values = (-change.before, -change.after, explained - (change.after - change.before))
        for name, value in zip(PAIR, values, strict=True):
            found[name].append(torch.tensor(value, dtype=torch.float64, device="cpu"))
        if plan.groups:
            parts["kernel"] = one.by_group(step, phi, numbers["clipped"])
        for name in PARTS:
            found[name].append(-parts[name])
        if check:
            fine = finer(plan.quadrature.rule, change.nodes)
            integrate(loss, one.parameters, step, Quadrature(fine.rule, fine.nodes))
            errors.append(fine.factor * (parts["kernel"] - one.kernel(step, numbers["clipped"])))
        numbers["nodes"] = max(numbers["nodes"], change.nodes)
    pair = [torch.stack(found["kernel"]), torch.stack(errors)] if check else [torch.tensor(torch.nan, device="cpu")] * 2
    numbers |= {name: float(values.norm()) for name, values in zip(NORMS, pair, strict=True)}
    result = {name: torch.stack(values, dim=-1).numpy() for name, values in found.items()}
    return result | {name: np.asarray(numbers[name], dtype=np.float64) for name in (*NUMBERS, *NORMS)}


class _Checkpoint:
    """A loaded checkpoint and the places of its batch in the pool."""

    def __init__(self, plan: Plan, model: PreTrainedModel, batch: list[int]) -> None:
        self.plan, self.pool, self.model, self.batch = plan, plan.problem.train, model, batch
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.tokens = _tokens(self.pool, batch)

    def simulate(self, snapshot: Snapshot) -> tuple[SimulatedStep, dict[str, float]]:
        """The update; with the gradient's norm, its clipping factor, the batch's mean loss, and the learning rate."""
        if snapshot.state is None:
            state = fresh_state(self.parameters, self.plan.history.fit, snapshot.step)
        else:
            state = read_state(snapshot.state, self.parameters)
        settings = state.settings
        clear(self.parameters)
        loss = self.total(self.pool, self.batch, self.tokens)(1.0)
        gradient = gradients(self.parameters)
        clear(self.parameters)
        norm = float(sum(value.square().sum(dtype=torch.float64) for value in gradient.values())) ** 0.5
        factor = min(1.0, settings.clip / (norm + 1e-6)) if settings.clip else 1.0  # as torch clips
        for value in gradient.values():
            value.mul_(factor)
        if settings.lr == 0:
            log.warning("%s: the learning rate of its next update is 0, so that nothing changes", snapshot.name)
        start = {name: value.detach().cpu().clone() for name, value in self.parameters.items()}
        rule = AdamW(settings.betas, settings.eps, settings.step, settings.eps_root)
        step = SimulatedStep(rule, start, gradient, state.moments, settings.lr, settings.weight_decay)
        numbers = {"lr": settings.lr, "gradient_norm": norm, "batch_loss": loss, "clipped": factor, "nodes": 0.0}
        return step, numbers

    def kernel(self, step: SimulatedStep, factor: float) -> Tensor:
        """The kernel's part [K], or [K, T] by group of the batch, of what lies in `.grad`."""
        phi = gradients(self.parameters)
        if self.plan.groups:
            return self.by_group(step, phi, factor)
        return dots(step.parts, phi, self.plan.slabs, self.plan.components)["kernel"]

    def by_group(self, step: SimulatedStep, phi: dict[str, Tensor], factor: float) -> Tensor:
        """The kernel's part [K, T] by group of the batch, from gradients at θ_s (where the parameters are)."""
        weighted = {name: step.kernel_scale(name) * value for name, value in phi.items()}
        columns = []
        for group in self.plan.groups:
            own = [place for place in self.batch if self.plan.history.groups[place] == group]
            clear(self.parameters)
            self.total(self.pool, own, self.tokens)(factor)
            own_gradients, count = gradients(self.parameters), self.plan.components
            found = dots(lambda name: {"kernel": weighted[name]}, own_gradients, self.plan.slabs, count)
            columns.append(found["kernel"])
        return torch.stack(columns, dim=1)

    def total(self, examples: Examples, places: list[int], tokens: int) -> Total:
        """The sum of the losses at `places`, in nats, over `tokens`."""
        compute = self.plan.problem.compute
        order = sorted(places, key=lambda place: -examples[place].length)
        pieces = token_budget_batches(examples.lengths, order, compute.tokens_per_batch)

        def total(weight: float | None) -> float:
            value = torch.zeros((), dtype=torch.float64, device=compute.device)
            for piece in pieces:
                batch = collate([examples[place] for place in piece])
                with torch.set_grad_enabled(weight is not None):
                    losses = _losses(self.model, batch, compute.device)
                    if weight is not None:
                        (losses.sum() * (weight / tokens)).backward()
                value += losses.detach().sum(dtype=torch.float64)
            return float(value) / tokens

        return total


def _losses(model: PreTrainedModel, batch: Batch, device: torch.device) -> Tensor:
    """Cross-entropy of every predicted token."""
    rows, columns = (send(one, device) for one in np.nonzero(batch.loss_mask[:, 1:].numpy()))
    inputs = batch.to(device)
    logits = model(input_ids=inputs.tokens, attention_mask=inputs.attention, use_cache=False).logits
    return cross_entropy(logits[rows, columns], inputs.tokens[rows, columns + 1], reduction="none")


def _tokens(examples: Examples, places: Iterable[int]) -> int:
    """Predicted tokens of the examples at `places`."""
    return sum(int(examples[place].loss_mask[1:].sum()) for place in places)
