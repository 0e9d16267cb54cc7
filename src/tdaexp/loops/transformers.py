"""Looking on in the loop of transformers' Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tdaexp.loops.loop import Loop
from tdaexp.loops.observer import Observer
from tdaexp.runtime.errors import UserError


class TransformersCallback(TrainerCallback):
    """Shows a training by `transformers.Trainer` to observers."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers
        self._loop: Loop | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Errors (UserError): a training that was shared out by DeepSpeed or FSDP, and as of the observers."""
        self._end(broken=True)  # of a training that an error ended
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UserError("loop: the model's weights are shared out over processes; train it with DDP instead")
        self._loop = Loop(
            known["model"],
            known["optimizer"],
            self.observers,
            loader=known["train_dataloader"],
            tokenizer=known.get("processing_class"),
            steps=state.max_steps,
            start=state.global_step,
        ).__enter__()

    def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """An update begins: gradients are zero."""
        if self._loop is not None:
            self._loop.drop()

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """The learning rate is that of the next update."""
        if self._loop is not None:
            self._loop.settle()

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """The training has ended."""
        self._end(broken=False)

    def _end(self, broken: bool) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.__exit__(RuntimeError if broken else None, None, None)
