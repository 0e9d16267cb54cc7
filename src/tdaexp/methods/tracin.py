"""TracIn: gradient dot products at the checkpoints of a training, weighted by their learning rates.

Source: Pruthi et al. 2020, equation 1 (TracInCP): Σ_i η_i ∇ℓ(θ_i, q)·∇ℓ(θ_i, z), with η_i the mean learning rate of the
steps between checkpoints i - 1 and i. It describes steps of plain gradient descent; the training here uses AdamW, whose
steps are scaled otherwise. Sign: positive = steps on the training example lowered the query's loss. Fills query, train
and component; additive over components. Cost: per checkpoint that of `dot`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp.gradients.capture import REDUCTIONS
from tdaexp.gradients.products import component_products
from tdaexp.methods.base import Method
from tdaexp.methods.study import Study
from tdaexp.models.loaded import LoadedModel
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.hub import runs_own_code
from tdaexp.training.kept import Checkpoint, kept_checkpoints, training_settings

log = logging.getLogger(__name__)


@dataclass
class TracIn(Method):
    """Keys: `steps` of the checkpoints to use (null = all that the training kept), `components` and `reduction` as for
    `full`. A run that trains its model keeps the checkpoints by itself.
    """

    steps: list[int] | None = field(default=None, metadata={"distinct": True})
    components: list[str] | None = None
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Refuse an unknown reduction."""
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction", self.reduction, REDUCTIONS, "method.reduction")

    @property
    def wants_checkpoints(self) -> bool:
        """Always."""
        return True

    def attribute(self, study: Study) -> xr.Dataset:
        """Weighted sum of component dot products over the checkpoints."""
        components = study.components(self.components)
        total = np.zeros((*study.pairs.shape, len(components)))
        used = checkpoints_of(study, self.steps)
        for number, checkpoint in enumerate(used, start=1):
            log.info("checkpoint %d of %d: step %d, rate %.3g", number, len(used), checkpoint.step, checkpoint.rate)
            loaded = load_checkpoint(study, checkpoint)
            products = component_products(
                loaded.model,
                study.components(self.components),
                study.train,
                study.queries,
                study.pairs,
                store=study.store(
                    "products", components.names, self.reduction, loaded.fingerprint, by=component_products
                ),
                reduction=self.reduction,
                tokens_per_batch=study.compute.tokens_per_batch,
                cache_gb=study.compute.cache_gb,
            )
            total += checkpoint.rate * products["dot"]
        return study.label(total, components).assign_attrs(steps=[one.step for one in used])


def checkpoints_of(study: Study, steps: list[int] | None = None) -> list[Checkpoint]:
    """The study's checkpoints, or those of the named steps. Errors (UserError): there are none, or not at that step."""
    folder = Path(str(study.loaded.model.name_or_path))
    kept = kept_checkpoints(folder)
    settings = training_settings(folder)
    if not kept and settings.get("keep") == "all":
        length, every = settings["steps"], settings["checkpoint_every"]
        raise UserError(
            f"{folder}: {length} steps of training and a checkpoint every {every} steps leave no checkpoint; set "
            f"trainer.fit.checkpoint_every={max(1, length // 5)}, or train for more steps (trainer.fit.steps)"
        )
    if not kept:
        raise UserError(
            f"{folder or 'the model'}: no checkpoints beside it, which this method needs; let it be trained here "
            "(model.pretrained=null), or name the model/ folder of a training with trainer.fit.keep=all"
        )
    known = [str(one.step) for one in kept]
    for step in steps or []:
        if str(step) not in known:
            raise unknown("step", str(step), known, "method.steps")
    return [one for one in kept if steps is None or one.step in steps]


def load_checkpoint(study: Study, checkpoint: Checkpoint) -> LoadedModel:
    """A checkpoint's weights, where and in which type the study's model is."""
    named = Pretrained(
        str(checkpoint.folder),
        template=study.loaded.template,
        max_length=study.loaded.max_length,
        trust_remote_code=runs_own_code(study.loaded.model),
    )
    return named.load(study.compute.device, study.compute.dtype)
