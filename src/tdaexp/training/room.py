"""Whether a step of a training fits the memory: known before the first one."""

from __future__ import annotations

import logging

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.data.examples import Examples
from tdaexp.models.adapted import config_of
from tdaexp.models.empty import empty_model
from tdaexp.models.empty_adapter import put_empty_on
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime import ranks
from tdaexp.runtime.limits import refuse_beyond
from tdaexp.training.footprint import training_bytes
from tdaexp.training.settings import FitSettings

log = logging.getLogger(__name__)
SMALL = 0.2e9
INDEX_BYTES = 100  # that an example's place in a batch takes while the batch is drawn


def check_step(start: LoadedModel, examples: Examples, settings: FitSettings, device: torch.device) -> None:
    """Refuse (UserError) a batch that needs more than is free; one that repeats the examples is told."""
    batch, count = settings.batch_size, len(examples)
    if settings.batches == "epochs":
        batch = min(batch, count)
    elif batch > count:
        log.info(
            "trainer.fit.batch_size=%d: each step takes the %d examples about %.3g times", batch, count, batch / count
        )
    mine, longest = -(-batch // ranks.current().world), int(max(examples.lengths))
    least = mine * longest * start.model.config.get_text_config().vocab_size * 8.0  # logits and their gradient
    if least < SMALL and mine * INDEX_BYTES < SMALL:
        return
    mode = FakeTensorMode()
    empty = put_empty_on(empty_model(start.model.config, torch.float32, mode), config_of(start.model), mode)
    needed = training_bytes(empty, mine, longest, mode)
    what = f"trainer.fit.batch_size={settings.batch_size}: a step over examples of up to {longest} tokens"
    refuse_beyond(needed + mine * INDEX_BYTES, what, f"1,000 examples need {1e-6 * needed / mine:.3g} GB", device)
