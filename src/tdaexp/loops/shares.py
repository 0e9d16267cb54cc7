"""Each example's share in the gradient that a training pass adds, captured while the loop's own backward pass runs.

Of the loss L of a pass over B examples the share of example i is what ∂L/∂θ would be if no other example had a
gradient, so that the shares sum to the gradient: of a mean of losses it is ∇ℓ_i / B. They are as the loop forms them:
divided by the passes that are accumulated, multiplied by a scaler's scale (`sums.length` takes it off).

Recomputed activations: a layer that ran with derivatives is taken as it ran then, and its second run within the
backward pass is passed over; one whose first run had none (reentrant checkpointing) is taken within the backward pass.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdaexp.gradients.assembly import Assembly, Consumer
from tdaexp.loops.loop import in_backward
from tdaexp.models.components import ComponentMap
from tdaexp.models.wrapped import language_model


class Shares:
    """Hooks on a model's layers; while it is armed, the next pass hands the components' shares to a consumer.

    The consumer is called within the backward pass, as of `gradients.capture`.
    """

    def __init__(self, model: nn.Module, components: ComponentMap) -> None:
        self.model, self.components = language_model(model), components
        self._pass: _Pass | None = None
        modules = Assembly(self.model, components, lambda *_: None, 1).modules
        self._handles = [
            module.register_forward_hook(partial(self._watch, path), with_kwargs=True)
            for path, module in modules.items()
        ]

    def arm(self, examples: int, consume: Consumer) -> None:
        """Capture the next pass, over so many examples. Errors (UserError): the last one left a component out."""
        self.rest()
        self._pass = _Pass(Assembly(self.model, self.components, consume, examples))

    def rest(self, complete: bool = True) -> None:
        """Capture nothing from here on. Errors (UserError): the pass so far left a component out, where it counts."""
        ended, self._pass = self._pass, None
        if complete and ended is not None and ended.seen:
            ended.assembly.check_complete()

    def leave(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._pass = [], None

    def _watch(
        self, path: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        now = self._pass
        if now is None or not torch.is_grad_enabled() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        inside = in_backward()
        if inside and now.seen.get(path) is False:
            return  # recomputed
        now.seen[path] = inside
        read = [*arguments, *named.values()]
        if now.assembly.is_norm(path):  # which autocast runs in its own type
            read[0] = read[0].to(output.dtype)
        output.register_hook(partial(now.assembly.receive, path, now.assembly.announce(path, read)))


class _Pass:
    """A pass that is captured: which layers were seen, and whether first within the backward pass."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.seen: dict[str, bool] = {}
