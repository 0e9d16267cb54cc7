"""What happens after a step: progress for people, checkpoints for the next run."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedTokenizerBase

from tdaexp.runtime import ranks, seal
from tdaexp.runtime.files import atomic_path
from tdaexp.runtime.progress import SECONDS_BETWEEN_LINES, SECONDS_TO_FIRST, bars, doing, place
from tdaexp.training.checkpoints import prune, resume_path, save_hub
from tdaexp.training.module import CausalTraining
from tdaexp.training.optimizer_state import save_state

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves every `checkpoint_every` steps: to `resume/` for a killed run, else than with keep=last to `checkpoints/`
    too.
    """

    def __init__(self, module: CausalTraining, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.module, self.folder, self.tokenizer = module, folder, tokenizer

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Save when the step is due. The hub folder comes first: what can be resumed has all folders before it."""
        step = trainer.global_step
        due = step % self.module.settings.checkpoint_every == 0
        if not (due or self.module.ending):
            return
        first = ranks.current().first
        if due and first and self.module.settings.keep != "last":
            place = self.folder / "checkpoints" / f"step-{step}"
            with atomic_path(place) as temporary:
                temporary.mkdir()
                save_hub(temporary, self.module.model, self.tokenizer)
                if self.module.settings.keep == "state":
                    named = self.module.model.named_parameters()
                    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
                    save_state(temporary, parameters, trainer.optimizers[0], self.module.settings, step)
                seal.seal(temporary)
        trainer.save_checkpoint(resume_path(self.folder / "resume", step))
        if first:
            prune(self.folder / "resume")
        trainer.should_stop = self.module.ending


class OwnSigterm(Callback):
    """Gives SIGTERM back to the handler that was there before the trainer's.

    Lightning's own handler waits for the other processes wherever the signal finds it, which can be for ever.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has put its handler in place."""
        if threading.current_thread() is threading.main_thread() and self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)


class Progress(Callback):
    """A bar with the loss and the time left on a terminal; elsewhere plain lines, and one at the end."""

    def __init__(self, module: CausalTraining) -> None:
        self.module, self.steps = module, module.settings.steps
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and the bar at the step where this run begins."""
        self.first = trainer.global_step
        doing("training")
        self.start = time.monotonic()
        self.due = self.start + SECONDS_TO_FIRST
        if sys.stderr.isatty() and ranks.current().first:
            self.bar = _bar()
            self.bar.start()
            bars.append(self.bar)
            self.task = self.bar.add_task("training", total=self.steps, completed=self.first, loss="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the bar, or write a line when a minute has passed."""
        step, loss, now = trainer.global_step, self.module.losses[-1], time.monotonic()
        place.description, place.done, place.total = "training", step, self.steps
        if self.bar is not None:
            self.bar.update(self.task, completed=step, loss=f"loss {loss:.3f}")
        elif now >= self.due:
            left = (now - self.start) / (step - self.first) * (self.steps - step)
            log.info("training: step %d of %d, loss %.3f, about %.0f s left", step, self.steps, loss, left)
            self.due = now + SECONDS_BETWEEN_LINES

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; say how long it took."""
        self._close()
        seconds, loss = time.monotonic() - self.start, self.module.losses[-1]
        log.info("training: %d steps in %.1f s, last loss %.3f", trainer.global_step - self.first, seconds, loss)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            bars.remove(self.bar)
            self.bar = None


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
