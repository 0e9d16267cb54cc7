"""Per-example gradients of a batch, by component, from one forward and one backward pass over frozen weights.

For a linear layer with inputs a_t and output gradients δ_t, example i's gradient is Σ_t δ_t a_tᵀ. Hooks keep a in the
forward pass and receive δ in the backward pass; no weight gradient is ever formed. What makes a pass cheap:

- the lowest module that is needed becomes the root of the graph: nothing below it is recorded or traversed;
- logits are computed only at the positions that predict a token with loss, where that gives the model's own numbers
  (`models.forward`);
- the batch's loss is the sum of the examples' losses, so that one backward pass serves them all unmixed.

Batches are padded on the right and attention is causal: no real position sees the padding, so no attention
mask is passed (which lets fused attention kernels run), and padding has δ = 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tdaexp.data.examples import Batch
from tdaexp.gradients.assembly import Assembly, Consumer
from tdaexp.gradients.factors import accumulation_dtype
from tdaexp.models.components import ComponentMap
from tdaexp.models.forward import runs_whole
from tdaexp.models.sharded import in_step, logits_at
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, L, V], targets [B, L] int64, weights [B, L]) to scalars [B]; weight 0 marks padding."""

REDUCTIONS = ("mean", "sum")


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Per-example weighted sum of token cross-entropies, formed in float32 at least."""
    wide = logits.to(accumulation_dtype(logits.dtype))
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses.view_as(targets) * weights).sum(1)


def capture(
    model: PreTrainedModel,
    components: ComponentMap,
    batch: Batch,
    consume: Consumer,
    *,
    loss: Loss = cross_entropy,
    reduction: str = "mean",
) -> Tensor:
    """Run one forward and backward pass; hand every component's factors to `consume`. Returns losses [B].

    To be called inside `with frozen(model):`. An example's loss is the mean (or sum) over its loss-carrying tokens;
    `loss` may be any other measurement. `consume` is called inside the backward pass, from the loss downwards, so that
    whatever it does not keep is freed at once. Errors (UserError): an example without any loss position.
    """
    positions, targets, weights = loss_positions(batch, reduction)
    device = next(model.parameters()).device
    # Nothing after the last predicting position can matter to the loss.
    tokens = send(batch.tokens[:, : int(positions.numpy().max()) + 1], device)
    positions, targets, weights = (send(one, device) for one in (positions, targets, weights))
    return run_pass(model, components, tokens, positions, targets, weights, consume, loss)


def run_pass(
    model: PreTrainedModel,
    components: ComponentMap,
    tokens: Tensor,
    positions: Tensor,
    targets: Tensor,
    weights: Tensor,
    consume: Consumer,
    loss: Loss = cross_entropy,
) -> Tensor:
    """The pass of `capture` for tokens [B, T], with what `loss_positions` returns of them. Reads no tensor's values."""
    runs_whole(model)  # found out before hooks are attached

    def one_pass() -> Tensor:
        assembly = Assembly(model, components, consume)
        roots: list[Tensor] = []
        with torch.enable_grad():
            with _hooks(assembly, roots):
                logits = logits_at(model, tokens, positions, "pos_embed" in components.names)
            losses = loss(logits, targets, weights.to(tokens.device, accumulation_dtype(logits.dtype)))
            del logits
            if not roots:
                raise RuntimeError("the model's parameters require gradients; call capture inside frozen(model)")
            torch.autograd.grad(losses.sum(), roots)
        assembly.check_complete()
        return losses.detach()

    return in_step(model, one_pass)


def check_reduction(reduction: str) -> None:
    """Raise UserError for a reduction of the loss over tokens that does not exist."""
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS, "method.reduction")


def loss_positions(batch: Batch, reduction: str = "mean") -> tuple[Tensor, Tensor, Tensor]:
    """Where logits are needed: positions t - 1 of the predicted tokens t, padded per batch. All on the host.

    Returns positions [B, L] int64, targets [B, L] int64, weights [B, L] float64: 1 over the number of the example's
    predicted tokens for "mean", 1 for "sum", 0 for padding. Errors: unknown reduction; an example without loss.
    """
    check_reduction(reduction)
    tokens, mask = batch.tokens.numpy(), batch.loss_mask[:, 1:].numpy()
    counts = mask.sum(1)
    if not counts.all():
        row = int(np.flatnonzero(counts == 0)[0])
        raise UserError(f"example {row} of a batch has no token with a loss; drop examples without a completion")
    width = int(counts.max())
    # A stable sort by "not predicted" lists each row's predicted positions first, in order.
    positions = np.argsort(~mask, axis=1, kind="stable")[:, :width]
    real = np.arange(width) < counts[:, None]
    positions = np.where(real, positions, 0)
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    weights = real / counts[:, None] if reduction == "mean" else real.astype(np.float64)
    return torch.from_numpy(positions), torch.from_numpy(targets), torch.from_numpy(weights)


@contextlib.contextmanager
def _hooks(assembly: Assembly, roots: list[Tensor]) -> Iterator[None]:
    """Attach the forward hooks of the modules that the assembly needs, for one forward pass."""
    handles = [
        module.register_forward_hook(partial(_watch, assembly, path, roots))
        for path, module in assembly.modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    assembly: Assembly, path: str, roots: list[Tensor], module: nn.Module, arguments: tuple, output: Tensor
) -> Tensor:
    """Forward hook: keep the module's input, and ask for its output's gradient."""
    if output.is_leaf:  # no graph so far; transformers' activation checkpointing lets embeddings require gradients
        root = output.detach().requires_grad_()
        roots.append(root)
        output = root.clone()  # a leaf may not be changed in place, which some models do (clip_qkv)
    output.register_hook(partial(assembly.receive, path, assembly.announce(path, arguments[0])))
    return output


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside the block; what was before is restored after it."""
    modes = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
