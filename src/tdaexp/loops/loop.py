"""Somebody's training loop, seen from outside: its updates by the optimiser's own hooks, its batches by their sampler.

Nothing in the loop has to be changed, and nothing of the training is: an update counts when torch's optimiser makes it,
so that one that a gradient scaler leaves out counts nowhere; passes since the update before belong to it, however many
are accumulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tdaexp.loops.observer import Observer
from tdaexp.loops.rows import BatchRows
from tdaexp.models.wrapped import compiled_from
from tdaexp.runtime.errors import UserError


class Loop:
    """A training of `model` by `optimizer`, with who looks on: a context around the loop.

    In a loop of one's own passes are seen as calls of the model in training (with derivatives). `loader` is the
    DataLoader that the loop goes over, `tokenizer` that of a language model, `start` the updates that were made before,
    `steps` those of the whole training where that is known.

    `step` counts updates, `passes` has the rows of each pass since the last one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        observers: Observer | Sequence[Observer],
        *,
        loader: Any = None,
        tokenizer: Any = None,
        steps: int | None = None,
        start: int = 0,
        announced: bool = False,
    ) -> None:
        """`announced`: somebody calls `begin_pass`. Errors (UserError): a model or an optimiser that cannot be seen."""
        self.model = _inner(model)
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # of Accelerate's
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise UserError(f"loop: the optimiser is a {type(optimizer).__name__}, and must be one of torch.optim")
        self.observers = [observers] if isinstance(observers, Observer) else list(observers)
        self.tokenizer, self.steps = tokenizer, steps
        self.step = self.start = start
        self.passes: list[list[int]] = []
        self.aside = False
        """Whether an observer runs the model itself."""
        self._loader, self._announced = loader, announced
        self._rows: BatchRows | None = None
        self._changed = False
        self._handles: list[Any] = []

    def __enter__(self) -> Loop:
        if any(one.needs_rows for one in self.observers):
            self._rows = self._loader if isinstance(self._loader, BatchRows) else BatchRows(self._loader)
        try:
            for one in self.observers:
                one.begin(self)
        except BaseException:
            self._leave()
            raise
        self._handles = [
            self.optimizer.register_step_pre_hook(lambda *_: self._before()),
            self.optimizer.register_step_post_hook(lambda *_: self._made()),
        ]
        if not self._announced:
            self._handles.append(self.model.register_forward_pre_hook(self._called))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.settle()
                for one in self.observers:
                    one.end(self)
        finally:
            self._leave()

    @property
    def rows(self) -> int:
        """How many rows the training set has."""
        return len(self.items)

    @property
    def items(self) -> Any:
        """The training set."""
        assert self._rows is not None
        return self._rows.items

    @property
    def collate(self) -> Any:
        """What makes a batch of a list of the loader's items."""
        assert self._rows is not None
        return self._rows.collate

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Number of this process among those that train together."""
        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    @property
    def world(self) -> int:
        """How many processes train together; their gradients are averaged."""
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters that are trained, by name."""
        mine = {id(one) for group in self.optimizer.param_groups for one in group["params"]}
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad and id(one) in mine}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the block an observer runs the model itself: no pass of the training, and in the weights' own type."""
        before, self.aside = self.aside, True
        device = next(self.model.parameters()).device.type
        try:
            with torch.enable_grad(), torch.autocast(device, enabled=False), _own_forward(self.model):
                yield
        finally:
            self.aside = before

    def begin_pass(self) -> None:
        """A training pass is about to begin."""
        self.settle()
        if self.passes and not self._announced and not self._accumulating():
            self.drop()
        if not self.passes:
            for one in self.observers:
                one.ahead(self)
        self.passes.append([] if self._rows is None else self._rows.next())
        for one in self.observers:
            one.passing(self)

    def drop(self, keep: int = 0) -> None:
        """No update came of the passes so far but for the last `keep`: their gradients were thrown away."""
        self.settle()
        if len(self.passes) > keep:
            self.passes = self.passes[len(self.passes) - keep :]
            for one in self.observers:
                one.discard(self, keep)

    def settle(self) -> None:
        """Tell of an update that was made; the learning rate is that of the next one."""
        if not self._changed:
            return
        self._changed = False
        self.step += 1
        for one in self.observers:
            one.after(self)
        self.passes = []

    def _called(self, *_: Any) -> None:
        if torch.is_grad_enabled() and not self.aside and not in_backward():
            self.begin_pass()

    def _before(self) -> None:
        self.settle()
        for one in self.observers:
            one.before(self)

    def _made(self) -> None:
        overflow = getattr(self.optimizer, "found_inf", None)
        if overflow is not None and float(overflow):  # a fused optimiser was called, and left everything as it was
            self.drop()
            return
        for one in self.observers:
            one.made(self)
        self._changed = True

    def _accumulating(self) -> bool:
        """Whether a gradient is there that the coming pass will add to."""
        found = [one.grad for one in self.parameters.values() if one.grad is not None]
        return any(bool(one.any()) for one in found)

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for one in self.observers:
            one.leave()
        if self._rows is not None and self._rows is not self._loader:
            self._rows.leave()


@contextlib.contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The model inside the block without the autocast that Accelerate puts around its forward."""
    mine = vars(model)
    around = mine.get("forward")
    if "_original_forward" not in mine or around is None:
        yield
        return
    mine["forward"] = mine["_original_forward"]
    try:
        yield
    finally:
        mine["forward"] = around


def in_backward() -> bool:
    """Whether this is called from within a backward pass: a forward pass there recomputes what was not kept."""
    return bool(torch._C._current_graph_task_id() != -1)


def _inner(model: nn.Module) -> nn.Module:
    """The module that is trained, without what DDP puts around it. Errors (UserError): its weights are shared out."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    model = compiled_from(model)
    if any(type(one).__name__ in ("DTensor", "FlatParameter") for one in model.parameters()):
        raise UserError("loop: the model's weights are shared out over processes (FSDP); train it with DDP instead")
    return model
