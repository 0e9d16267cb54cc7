"""What is decomposed: any differentiable function of a model's output, or an activation inside it (corollary 3.3).

A model is called as `model(inputs)` and answers with logits [Q, C]; a batch is (inputs, targets [Q] int64).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tdaexp.pathkernel.parameters import Batch, Function, Parameters
from tdaexp.pathkernel.secant import read_out
from tdaexp.runtime.errors import UserError, unknown

Read = Callable[[Tensor, Tensor], Tensor]
"""(logits [Q, C], targets [Q]) -> [Q, O]."""


@dataclass(frozen=True)
class Output:
    """A named function of the logits; `sign` is −1 where a larger value means that the query became less likely."""

    read: Read
    sign: int = 1


def _own(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(1, targets[:, None])


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-odds of the target: its logit less the log of the sum of the others' exponentials."""
    others = torch.ones_like(logits).scatter(1, targets[:, None], 0) == 0
    return _own(logits, targets) - logits.masked_fill(others, -torch.inf).logsumexp(1, keepdim=True)


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1, keepdim=True)


OUTPUTS: Mapping[str, Output] = {
    "logits": Output(lambda logits, targets: logits),
    "log_probabilities": Output(lambda logits, targets: logits.log_softmax(1)),
    "target_logit": Output(_own),
    "margin": Output(_margin),
    "loss": Output(lambda logits, targets: cross_entropy(logits, targets, reduction="none")[:, None], sign=-1),
    "probability": Output(lambda logits, targets: _own(logits.softmax(1), targets)),
    "entropy": Output(_entropy),
}
"""Named outputs; those in the plural have one column per class. Entropy is in nats."""


def _coordinate(place: int) -> Read:
    def read(logits: Tensor, targets: Tensor) -> Tensor:
        if place >= logits.shape[1]:
            raise UserError(f"method.output=coordinate:{place}: the model has {logits.shape[1]} outputs, 0 to "
                            f"{logits.shape[1] - 1}")  # fmt: skip
        return logits[:, place, None]

    return read


def output(name: str) -> Output:
    """A named output, or `coordinate:J`, the J-th logit. Errors (UserError): unknown name; J beyond them when read."""
    kind, _, number = name.partition(":")
    if kind == "coordinate" and number.isdecimal():
        return Output(_coordinate(int(number)))
    if name not in OUTPUTS:
        raise unknown("output", name, [*OUTPUTS, "coordinate:J", "activation:MODULE"], "method.output")
    return OUTPUTS[name]


def linear(matrix: Tensor) -> Output:
    """The logits through a linear map [O, C]."""
    return Output(lambda logits, targets: logits @ matrix.mT)


def of_model(model: nn.Module, read: Read) -> Function:
    """θ, (inputs, targets) -> read(logits, targets). Buffers stay as they are in the model."""

    def function(parameters: Parameters, batch: Batch) -> Tensor:
        inputs, targets = batch
        return read_out(read, functional_call(model, dict(parameters), (inputs,)), targets)

    return function


def activation(model: nn.Module, module: str) -> Function:
    """θ, (inputs, targets) -> what the named module gives out, [Q, all its features].

    Errors (UserError): no such module, or one that does not run, or gives out something else than a tensor.
    """
    modules = dict(model.named_modules())
    if module not in modules or not module:
        raise unknown("module", module, [name for name in modules if name], "method.output: activation")

    def function(parameters: Parameters, batch: Batch) -> Tensor:
        seen: list[Tensor] = []
        handle = modules[module].register_forward_hook(lambda _, __, given: seen.append(given))
        try:
            functional_call(model, dict(parameters), (batch[0],))
        finally:
            handle.remove()
        if not seen or not isinstance(seen[-1], Tensor):
            raise UserError(f"method.output: module '{module}' gives out no tensor; name one of its parts")
        return seen[-1].flatten(1)

    return function


def example_losses(model: nn.Module) -> Function:
    """θ, (inputs, targets) -> cross-entropy of each example [B, 1], in nats."""
    return of_model(model, OUTPUTS["loss"].read)
