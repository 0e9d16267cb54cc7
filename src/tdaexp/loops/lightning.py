"""Looking on in Lightning's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from tdaexp.loops.loop import Loop
from tdaexp.loops.observer import Observer
from tdaexp.loops.rows import BatchRows
from tdaexp.runtime.errors import UserError, unknown


class LightningCallback(Callback):
    """Shows a training by `lightning.Trainer` to observers.

    `model` is the name of the submodule that is looked at; by default the module's one model of transformers, else the
    LightningModule itself.
    """

    def __init__(self, *observers: Observer, model: str | None = None) -> None:
        self.observers, self.model = observers, model
        self._loop: Loop | None = None
        self._seen: dict[int, BatchRows] = {}
        self._restore: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand before the samplers of the loaders, which are asked for their first batches before training starts."""
        if stage != "fit" or not any(one.needs_rows for one in self.observers):
            return
        strategy: Any = trainer.strategy
        process = strategy.process_dataloader

        def processed(loader: object) -> object:
            given = process(loader)
            if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset) and given.batch_sampler:
                self._seen[id(given)] = BatchRows(given)
            return given

        strategy.process_dataloader = processed
        self._restore = lambda: vars(strategy).pop("process_dataloader", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Errors (UserError): several optimisers, and as of the observers."""
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"loop: the module has {len(trainer.optimizers)} optimisers; a training by one is looked at"
            )
        loader: Any = trainer.train_dataloader
        self._loop = Loop(
            self._model(pl_module),
            trainer.optimizers[0],
            self.observers,
            loader=self._seen.get(id(loader), loader),
            steps=int(trainer.estimated_stepping_batches),
            start=trainer.global_step,
            announced=True,
        ).__enter__()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A pass begins."""
        if self._loop is not None:
            self._loop.begin_pass()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """The gradients are those of the pass at hand alone: its forward half has been."""
        if self._loop is not None:
            self._loop.drop(keep=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """The learning rate is that of the next update."""
        if self._loop is not None:
            self._loop.settle()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training has ended."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.__exit__(None, None, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it is."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.__exit__(type(exception), exception, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the loaders' own samplers back."""
        for one in self._seen.values():
            one.leave()
        self._seen = {}
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _model(self, module: LightningModule) -> nn.Module:
        if self.model is None:
            found = [one for one in module.children() if isinstance(one, PreTrainedModel)]
            return found[0] if len(found) == 1 else module
        named: dict[str, nn.Module] = dict(module.named_modules())
        if self.model not in named:
            raise unknown("submodule", self.model, [name for name in named if name], "LightningCallback")
        return named[self.model]
