"""What a path decomposition is about: a function of the queries, the steps that count, and the axes that stay."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from tdaexp.data.tensors import TensorExamples
from tdaexp.pathkernel.kinks import kinked_operation
from tdaexp.pathkernel.parameters import Batch, Function, Layout, Parameters, Step
from tdaexp.pathkernel.quadrature import AUTO, Quadrature
from tdaexp.pathkernel.secant import NoRule, smooth_operation
from tdaexp.paths.partition import Partition
from tdaexp.paths.replay import step_of
from tdaexp.problem import Problem
from tdaexp.training.trajectory import Trajectory

log = logging.getLogger(__name__)
SWEEP_MEMORY = 10**9  # bytes of the sweep's vectors, one for each query and output, and of a step's own beside them


@dataclass(frozen=True)
class PathJob:
    """What to decompose: `function` of the problem's queries, over the steps of the `trajectory` in `counted`.

    Steps are decomposed on the problem's device and in its type; examples and trajectory stay in main memory.

    `keep` holds the axes that are not summed, of step, component, part, train, query and output. `single`: of how many
    training examples, the first ones, the sweep takes influences (None: all). `partition` of the training examples,
    where the axis `part` is kept.
    """

    problem: Problem
    trajectory: Trajectory
    function: Function
    quadrature: Quadrature
    keep: frozenset[str]
    counted: list[int]
    mode: str
    single: int | None = None
    partition: Partition | None = None

    @property
    def layout(self) -> Layout:
        """Parameters by component; as one where the axis is summed, which saves passes."""
        components = self.problem.map.members(self.problem.model)
        if "component" not in self.keep:
            components = {"all": tuple(name for names in components.values() for name in names)}
        return Layout.of(dict(self.problem.model.named_parameters()), components)

    @property
    def queries(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the queries."""
        return tensors_of(self.problem, self.problem.queries)

    def examples(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of training examples."""
        return tensors_of(self.problem, self.problem.train.select(ids.numpy()))

    def replay(self, number: int) -> Step:
        """One recorded update."""
        compute = self.problem.compute
        return step_of(self.trajectory, number, compute.dtype, compute.device)

    @property
    def summed(self) -> Function:
        """The function with its outputs summed where that axis is: influences are linear in it."""
        if "output" in self.keep:
            return self.function

        def function(parameters: Parameters, batch: Batch) -> Tensor:
            return self.function(parameters, batch).sum(1, keepdim=True)

        return function

    def groups(self, outputs: int) -> list[PathJob]:
        """The job in groups of queries whose vectors fit SWEEP_MEMORY; one where queries are summed."""
        count = len(self.problem.queries)
        if "query" not in self.keep:
            return [self]
        width = outputs if "output" in self.keep else 1
        row = 2 * width * self.layout.size * torch.finfo(self.problem.compute.dtype).bits // 8
        rows = max(1, SWEEP_MEMORY // row)
        return [
            dataclasses.replace(self, problem=self.problem.of_queries(range(begin, min(begin + rows, count))))
            for begin in range(0, count, rows)
        ]


def tensors_of(problem: Problem, examples: TensorExamples) -> tuple[Tensor, Tensor]:
    """Inputs, in the problem's type where they are real numbers, and targets, on its device."""
    inputs, compute = examples.inputs, problem.compute
    dtype = compute.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(compute.device, dtype), examples.targets.to(compute.device)


def kept_outputs(values: Tensor, keep: frozenset[str]) -> Tensor:
    """Sum the last two axes, query and output, unless they are kept."""
    values = values if "output" in keep else values.sum(-1)
    return values if "query" in keep else values.sum(-2 if "output" in keep else -1)


def chosen_rule(quadrature: Quadrature, function: Function, problem: Problem) -> Quadrature:
    """The quadrature with the rule `auto` settled for this network, which is said in the log.

    Secant is complete with one derivative, where products, ReLUs and maxima are all that there is. Where the network is
    smooth, a node of gauss costs less and is nearly so, and a small tolerance finds the steps that need a second one.
    Errors (UserError): secant for a network that has no rule.
    """
    if quadrature.rule not in (AUTO, "secant"):
        return quadrature
    parameters = {name: value.detach().to(problem.compute.dtype) for name, value in problem.model.named_parameters()}
    two = tensors_of(problem, problem.queries.select(range(len(problem.queries))[:2]))
    try:
        smooth = smooth_operation(function, parameters, two)
        reason = None if smooth is None else f"the operation '{smooth}' is smooth"
    except NoRule as error:
        if quadrature.rule != AUTO:
            raise
        reason = error.reason
    kink = kinked_operation(function, parameters, two)
    found = quadrature.chosen(secant=reason is None, smooth=kink is None)
    if quadrature.rule == AUTO:
        why = "" if reason is None else f", {reason}" + ("" if kink is None else f" (and '{kink}' has a kink)")
        log.info("method.quadrature.rule=auto: %s%s; tolerance %s", found.rule, why, found.tolerance)
    return found
