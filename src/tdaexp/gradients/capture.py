"""Per-example gradients of a batch, by component, from one forward and one backward pass over frozen weights.

For a linear layer with inputs a_t and output gradients δ_t, example i's gradient is Σ_t δ_t a_tᵀ. Hooks keep a in the
forward pass and receive δ in the backward pass; no weight gradient is ever formed. What makes a pass cheap:

- the lowest module that is needed becomes the root of the graph: nothing below it is recorded or traversed;
- the batch's loss is the sum of the examples' losses, so that one backward pass serves them all unmixed;
- an objective computes outputs only where there is loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tdaexp.gradients.assembly import Assembly, Consumer
from tdaexp.models.components import ComponentMap
from tdaexp.models.eval_mode import in_eval
from tdaexp.models.sharded import in_step


def capture(
    model: nn.Module, components: ComponentMap, examples: int, losses: Callable[[], Tensor], consume: Consumer
) -> Tensor:
    """Run one forward and backward pass; hand every component's factors to `consume`. Returns losses [B].

    To be called inside `with frozen(model):`. `losses` runs the model on B = `examples` of them and returns one number
    for each.
    `consume` is called inside the backward pass, from the loss downwards, so that whatever it does not keep is freed at
    once. Errors (UserError): a layer that runs more than once.
    """

    def one_pass() -> Tensor:
        assembly = Assembly(model, components, consume, examples)
        roots: list[Tensor] = []
        with torch.enable_grad():
            with _hooks(assembly, roots):
                values = losses()
            if not roots:
                raise RuntimeError("the model's parameters require gradients; call capture inside frozen(model)")
            torch.autograd.grad(values.sum(), roots)
        assembly.check_complete()
        return values.detach()

    return in_step(model, one_pass)


@contextlib.contextmanager
def _hooks(assembly: Assembly, roots: list[Tensor]) -> Iterator[None]:
    """Attach the forward hooks of the modules that the assembly needs, for one forward pass."""
    own_ways = assembly.own_ways
    uses = _Uses(assembly, roots, own_ways)
    handles = [
        module.register_forward_hook(
            partial(uses.watch_unseen if path in own_ways else _watch, assembly, path, roots), with_kwargs=True
        )
        for path, module in assembly.modules.items()
        if path not in own_ways or isinstance(module, nn.Linear)
    ]
    try:
        with uses if own_ways else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    assembly: Assembly,
    path: str,
    roots: list[Tensor],
    module: nn.Module,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    output: Tensor,
) -> Tensor:
    """Forward hook: keep the module's input, and ask for its output's gradient."""
    if output.is_leaf:  # no graph so far; transformers' activation checkpointing lets embeddings require gradients
        root = output.detach().requires_grad_()
        roots.append(root)
        output = root.clone()  # a leaf may not be changed in place, which some models do (clip_qkv)
    read = [*arguments, *named.values()]
    output.register_hook(partial(assembly.receive, path, assembly.announce(path, read)))
    return output


CASTS = {getattr(Tensor, name) for name in ("to", "type", "float", "double", "half", "bfloat16")}


class _Uses(TorchFunctionMode):
    """Watches where weights are used whose modules do more with them: a scaled embedding, a router, shifted positions.

    The module's output is then not the lookup's or the linear map's, and what it is called with may not be what those
    read. A weight that is turned into another type first is still that weight.
    """

    def __init__(self, assembly: Assembly, roots: list[Tensor], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.assembly, self.roots, self.modules = assembly, roots, modules
        self.turned: list[tuple[Tensor, Tensor]] = []  # weights in another type, and what they were
        self.seen: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result, watched where one of the modules' weights is its second argument."""
        output = func(*args, **(kwargs or {}))
        if func in CASTS and any(module.weight is args[0] for module in self.modules.values()):
            self.turned.append((output, args[0]))
        if func is nn.functional.linear or func is nn.functional.embedding:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            weight = next((before for after, before in self.turned if after is weight), weight)
            for path, module in self.modules.items():
                looks_up = isinstance(module, nn.Embedding)  # whose matrix may be a head's, too
                if module.weight is weight and looks_up == (func is nn.functional.embedding):
                    self.seen.add(path)
                    return _watch(self.assembly, path, self.roots, module, args, {}, output)
        return output

    def watch_unseen(self, assembly: Assembly, path: str, *rest: Any) -> Any:
        """Forward hook of a linear layer with a forward of its own, which may be the usual product in other words."""
        output = rest[-1]
        return output if path in self.seen or not isinstance(output, Tensor) else _watch(assembly, path, *rest)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; what was before is restored after it."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with in_eval(model):
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
