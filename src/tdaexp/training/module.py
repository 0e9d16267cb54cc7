"""The LightningModule: next-token loss on masked positions, the configured optimiser and schedule."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from tdaexp.data.examples import Batch, Example, Examples, collate
from tdaexp.models.adapted import is_adapted
from tdaexp.models.forward import runs_whole
from tdaexp.models.loaded import head
from tdaexp.runtime import ranks, stop
from tdaexp.runtime.errors import UserError
from tdaexp.training.batches import batch_indices, epoch_batch
from tdaexp.training.optimisers import build_optimizer, learning_rate_factor
from tdaexp.training.settings import FitSettings


def causal_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over all tokens of the batch that carry loss: a scalar.

    The token at t is predicted from the logits at t - 1. The same as the model's own loss with labels of -100
    where `loss_mask` is False; NaN when no token carries loss. Of a large base that an adapter is trained on, logits
    are formed where there is loss alone, if that gives the model's own (`models.forward`).
    """
    counted, inputs = batch.loss_mask[:, 1:], {"attention_mask": batch.attention, "use_cache": False}
    if is_adapted(model) and not runs_whole(model):
        hidden = model.base_model(input_ids=batch.tokens, **inputs).last_hidden_state
        predicted = head(model)(hidden[:, :-1][counted])  # [tokens with loss, V]
    else:
        predicted = model(input_ids=batch.tokens, **inputs).logits[:, :-1][counted]
    predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
    return torch.nn.functional.cross_entropy(predicted, batch.tokens[:, 1:][counted])


class CausalTraining(LightningModule):
    """Trains a causal language model on examples; its state is a function of the step alone.

    Batches come from the step number and not from a data loader: a run that resumes in the middle of an epoch
    sees the batches that the undisturbed run would have seen. `losses` holds the loss of every step so far.
    """

    def __init__(
        self, model: PreTrainedModel, examples: Examples, settings: FitSettings, *, seed: int, pad_id: int
    ) -> None:
        super().__init__()
        self.model, self.examples, self.settings = model, examples, settings
        self.seed, self.pad_id = seed, pad_id
        self.losses: list[float] = []
        self.strict_loading = all(parameter.requires_grad for parameter in model.parameters())
        self.ending = False  # whether a process was asked to end after this step

    def on_train_epoch_start(self) -> None:
        """Keep the model in eval mode: the only thing that train mode would add is dropout."""
        self.model.eval()

    def training_step(self, _: Any, batch_idx: int) -> Tensor:
        """Return the loss of this step's batch; a loss that is not finite ends the training."""
        step = self.global_step
        cut = batch_indices if self.settings.batches == "stream" else epoch_batch
        indices = cut(step, seed=self.seed, examples=len(self.examples), batch_size=self.settings.batch_size)
        own, loss = self._loss([self.examples[int(index)] for index in indices])
        if not torch.isfinite(loss):
            raise UserError(
                f"training: the loss is {loss.item()} at step {step}; lower trainer.fit.lr "
                f"(now {self.settings.lr:g}) or trainer.fit.clip (now {self.settings.clip:g}), or raise "
                "trainer.fit.warmup"
            )
        self.losses.append(loss.item())
        return own

    def _loss(self, examples: list[Example]) -> tuple[Tensor, Tensor]:
        """What to differentiate in this process, and the loss of the whole batch.

        Several processes take a share of the examples each. Their gradients are averaged, so a process's loss is summed
        over its tokens, divided by the batch's tokens and multiplied by the number of processes.
        """
        me = ranks.current()
        self.ending = stop.requested() is not None
        mine = examples[me.rank :: me.world]
        batch = collate(mine or examples[:1], self.pad_id).to(self.device)
        loss = causal_loss(self.model, batch)
        if me.world == 1:
            return loss, loss
        tokens = sum(int(one.loss_mask[1:].sum()) for one in examples)
        own = sum(int(one.loss_mask[1:].sum()) for one in mine)
        part = loss * (own / tokens)
        told = torch.tensor([part.item(), float(self.ending)], dtype=torch.float64)
        whole, ending = ranks.together(told, leave=False)
        self.ending = bool(ending)
        return part * me.world, whole

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser and schedule, stepped after every batch."""
        settings = self.settings
        named: dict[str, Tensor] = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        schedule = {"steps": settings.steps, "warmup": settings.warmup, "schedule": settings.schedule}
        optimizer = build_optimizer(named, settings)
        rates = LambdaLR(optimizer, lambda step: learning_rate_factor(step, **schedule))  # type: ignore[arg-type]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loss curve with the weights, and of these what is trained."""
        fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        if fixed:
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in fixed}
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the loss curve up again."""
        self.losses = list(checkpoint["losses"])
