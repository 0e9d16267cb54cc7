"""A model whose weights are shared out over the processes of a run: one that fits no single device.

torch's FSDP2 keeps a slice of every matrix in each process. A layer is gathered just before it is computed, forward and
backward, and freed after it; hooks on modules see whole activations and output gradients. So passes are exact, but all
processes must make them together (`runtime.lockstep`), and make the same gathers in the same order: a pass that ends
early, for whatever reason, makes up for those that it left out.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from tdaexp.models import forward
from tdaexp.models.loaded import head
from tdaexp.runtime import lockstep, ranks, stop
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import free_memory, out_of_memory

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

T = TypeVar("T")
_sharded: dict[nn.Module, Sharded] = {}  # for the life of the process: its companions count on it


def in_step(model: nn.Module, work: Callable[[], T]) -> T:
    """Result of `work`, which makes at most one forward and backward pass; of a sharded model all processes at once.

    Errors: those of `work`; `Lost` when another process ended.
    """
    sharded = _sharded.get(model)
    return work() if sharded is None else sharded.step(work)


def logits_at(model: PreTrainedModel, tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits [B, L, V] of tokens [B, T] at the positions [B, L] only; of a sharded model, within `in_step`."""
    own = _sharded[model].logits if model in _sharded else partial(forward.logits_at, model)
    return own(tokens, positions)


def units_of(model: PreTrainedModel) -> list[nn.Module]:
    """The parts that are gathered one at a time: each block, and the embedding and the head unless they are tied.

    The rest (a tied embedding, final norms, learned positions) is whole during a pass.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    inner = {id(below) for one in lists for below in one.modules() if below is not one}
    blocks = [block for one in lists if id(one) not in inner for block in one]
    embedding, top = model.get_input_embeddings(), head(model)
    return blocks if embedding.weight is top.weight else [*blocks, embedding, top]


class Sharded:
    """One sharded model in this process, and the gathers that a whole pass through it makes, in order.

    Frozen models only; one that lies in main memory goes to the device one layer at a time. Errors (UserError): torch
    is too old.
    """

    def __init__(self, model: PreTrainedModel, mesh: DeviceMesh) -> None:
        """Keep this process's share of the weights, on the device of the `mesh`; `open` must follow."""
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if not hasattr(FSDPModule, "reset_iter_state"):
            raise UserError(f"trainer=fsdp needs torch 2.13 or later, this is {torch.__version__}; install a newer one")
        if forward.hooked(model):
            raise UserError(
                f"trainer=fsdp: {type(model).__name__} has hooks on itself or a forward of its own, which a model that "
                "is shared out does not run; take trainer=ddp"
            )
        embedding = model.get_input_embeddings()
        self._made: list[Any] = []
        for unit in (*units_of(model), model):
            whole: Any = fully_shard(unit, mesh=mesh)
            whole.set_custom_all_gather(_Gather(whole, self._made))
            if unit is embedding:
                whole.set_unshard_in_backward(False)  # a lookup's gradient does not need the table
        self.model = cast(Any, model)
        self.model.logits_at = partial(forward.logits_at, model, whole=model.forward)
        register_fsdp_forward_method(model, "logits_at")
        self.logits: Callable[..., Tensor] = self.model.logits_at
        self._order: list[Any] = []
        self._passes = self._forwards = -1
        _sharded[model] = self

    def open(self) -> None:
        """Make the first pass, to see what it gathers; every process of the run must call it at the same time."""
        forward.runs_whole(self.model, self.logits)
        self.model.reshard()
        self._made.clear()
        self._idle()
        self._order = list(self._made)
        self._passes = lockstep.join(lambda: self._complete(self._idle))
        self._forwards = lockstep.join(self._idle_forward)
        # a plain call of the model, as `generate` makes it
        self.model.register_forward_pre_hook(lambda *_: lockstep.wait_for_turn(self._forwards), prepend=True)
        self.model.register_forward_hook(lambda *_: self.model.reshard())

    def step(self, work: Callable[[], T]) -> T:
        """Result of `work` once all processes are in a pass of this model."""
        lockstep.wait_for_turn(self._passes)
        return self._complete(work)

    def _idle(self) -> None:
        """A whole pass without work: two tokens, forward to the logits and back to the embedding."""
        roots: list[Tensor] = []

        def begin(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            roots.append(output.detach().requires_grad_())
            return roots[0]

        handle = self.model.get_input_embeddings().register_forward_hook(begin)
        try:
            with torch.enable_grad():
                torch.autograd.grad(self._two_tokens().sum(), roots)
        finally:
            handle.remove()

    def _idle_forward(self) -> None:
        """A forward pass without work."""
        with torch.no_grad():
            self._two_tokens()
        self.model.reshard()

    def _two_tokens(self) -> Tensor:
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=self.model.device)
        return self.logits(tokens, tokens)

    def _complete(self, work: Callable[[], T]) -> T:
        """Result of `work`, all gathers of a whole pass made, also where it fails."""
        self._made.clear()
        try:
            result = work()
        except stop.Lost:
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # which hold on to the pass's tensors
            free_memory()
            self.model.reset_iter_state()
            self._make_up()
            raise
        self._make_up()
        return result

    def _make_up(self) -> None:
        """Make the gathers that others wait for. Errors (UserError): no memory is left for one."""
        if self._made != self._order[: len(self._made)]:
            raise RuntimeError("a pass of a sharded model gathered its layers in an order of its own")
        try:
            for unit in self._order[len(self._made) :]:
                unit.unshard()
                unit.reshard()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                "out of memory: not even one layer of the sharded model can be gathered; take a smaller "
                "trainer.cache_gb, or a device with more memory"
            ) from error


class _Gather:
    """FSDP's gather of one unit, written down in `made` once it is under way."""

    def __init__(self, unit: Any, made: list[Any]) -> None:
        self.unit, self.made = unit, made

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer that a gather fills."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather. Errors: `Lost` when another process ended."""
        import torch.distributed as dist

        try:
            work = dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise stop.Lost(ranks.ENDED) from error
        self.made.append(self.unit)
        return work
