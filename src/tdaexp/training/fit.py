"""Train a causal language model to a folder, so that a killed run goes on to the bit-identical result.

    folder/fit.json                 fingerprint and settings of the training that the folder belongs to
    folder/resume/step-*.ckpt       Lightning checkpoints of an unfinished run
    folder/checkpoints/step-N/      hub format, with keep=all; keep=state adds `optimizer.safetensors`
    folder/model/                   the result in hub format, with `training.json`; appears complete or not at all

Cost: one forward and one backward pass of `batch_size` examples per step, the weights three times (AdamW) in memory. Of
a model with an adapter that alone is trained, kept and saved (in peft's format): no gradient of the base is formed.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from tdaexp.data.examples import Examples
from tdaexp.models.adapted import train_only_adapter
from tdaexp.models.loaded import LoadedModel, freeze
from tdaexp.runtime import ranks, stop
from tdaexp.runtime.code import code_identity
from tdaexp.runtime.device import resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fabric import environment
from tdaexp.runtime.files import cached_folder, write_json
from tdaexp.runtime.fingerprint import fingerprint, provenance
from tdaexp.runtime.surroundings import from_outside
from tdaexp.training.callbacks import Checkpoints, OwnSigterm, Progress
from tdaexp.training.checkpoints import AtomicCheckpointIO, newest_readable, save_hub
from tdaexp.training.habits import global_torch_state, interrupts, quiet_lightning
from tdaexp.training.module import CausalTraining
from tdaexp.training.room import check_step
from tdaexp.training.settings import FitSettings

log = logging.getLogger(__name__)
LIGHTNING_PRECISION = {"float32": "32-true", "float64": "64-true", "bfloat16": "bf16-mixed"}


def fit_fingerprint(start: LoadedModel, examples: Examples, settings: FitSettings, *, seed: int, precision: str) -> str:
    """Identity of the trained weights: this code, start, examples in order, deciding settings, seed and precision."""
    return fingerprint(
        code_identity(fit), start.fingerprint, examples.fingerprint(), settings.deciding(), seed, precision
    )


def fit(
    start: LoadedModel,
    examples: Examples,
    settings: FitSettings,
    *,
    folder: Path,
    seed: int,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> Path:
    """Train `start` on the examples' loss positions and return `folder/model`, in hub format.

    Run again after a kill, it continues from the newest checkpoint in `folder/resume`; a finished folder is returned at
    once. The weights of `start.model` are trained in place. `precision` bfloat16 means mixed: the weights stay float32.
    Errors: an example without loss, a folder of another training, a loss that is not finite, a full disk.
    """
    resolve_dtype(precision)
    _check_examples(examples)
    identity = fit_fingerprint(start, examples, settings, seed=seed, precision=precision)
    first, result = ranks.current().first, folder / "model"
    with stop.finishing(), ranks.locked_for_all(folder / "fit"):
        if first:
            _claim(folder, {"fingerprint": identity, "seed": seed, "precision": precision, **asdict(settings)})
        if not ranks.from_first(result.exists()):
            losses = _train(start, examples, settings, folder, seed=seed, device=device, precision=precision)
            if first:
                _save(result, start, losses, identity, {"seed": seed, "precision": precision, **asdict(settings)})
        if first:
            shutil.rmtree(folder / "resume", ignore_errors=True)
    return result


def _check_examples(examples: Examples) -> None:
    if not len(examples):
        raise UserError("training: the data set has no example; check dataset.path and its filters")
    for example in examples:
        if not example.loss_mask[1:].any():
            raise UserError(
                f"training: example '{example.id}' has no token to predict (an empty completion, or one cut "
                "off); raise the maximal length or filter it out"
            )


def _claim(folder: Path, settings: dict[str, object]) -> None:
    """Write down whose folder this is; refuse one that belongs to another training."""
    note = folder / "fit.json"
    if not note.exists():
        write_json(note, settings)
        return
    try:
        theirs = json.loads(note.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{note}: not readable; delete the folder {folder} and run again") from error
    if theirs != settings["fingerprint"]:
        raise UserError(f"{folder} holds another training (other data, settings or seed); name another folder")


def _train(
    start: LoadedModel,
    examples: Examples,
    settings: FitSettings,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str,
    precision: str,
) -> list[float]:
    """Run Lightning's loop from the newest checkpoint, if any, to the last step; return the loss of every step."""
    if settings.steps == 0:
        return []
    device = torch.device(device)
    check_step(start, examples, settings, device)
    pad = start.tokenizer.pad_token_id
    train_only_adapter(start.model)
    module = CausalTraining(start.model, examples, settings, seed=seed, pad_id=0 if pad is None else int(pad))
    me = ranks.current()
    checkpoint = ranks.from_first(newest_readable(folder / "resume") if me.first else None)
    if checkpoint:
        log.info("training: going on from %s", checkpoint)
    with quiet_lightning(), global_torch_state():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            **_placed(device),
            precision=LIGHTNING_PRECISION[precision],  # type: ignore[arg-type]
            max_steps=settings.steps,
            max_epochs=-1,
            gradient_clip_val=settings.clip or None,
            deterministic=device.type == "cuda",  # on the CPU the loop is deterministic as it is
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[Checkpoints(module, folder, start.tokenizer), Progress(module), OwnSigterm()],
            plugins=[AtomicCheckpointIO(), environment(from_outside() if me.world > 1 else None)],
        )
        with interrupts():
            trainer.fit(module, train_dataloaders=_Ticks(), ckpt_path=checkpoint, weights_only=True)
    if module.ending:
        stop.check()
        raise stop.Stopped()
    freeze(start.model)
    if not all(torch.isfinite(parameter).all() for parameter in start.model.parameters()):
        raise UserError("training: the last step left weights that are not finite; lower trainer.fit.lr")
    return module.losses


def _placed(device: torch.device) -> dict[str, Any]:
    """Lightning's settings for one process, or for the group that this one has joined."""
    me = ranks.current()
    if me.world == 1:
        return {"devices": [device.index or 0] if device.type == "cuda" else 1}
    return {"devices": me.world // me.nodes, "num_nodes": me.nodes, "strategy": DDPStrategy()}


class _Ticks:
    """An endless loader that only makes Lightning's loop go round: the module picks its batches by step."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


def _save(result: Path, start: LoadedModel, losses: list[float], identity: str, settings: dict[str, object]) -> None:
    def build(temporary: Path) -> None:
        save_hub(temporary, start.model, start.tokenizer)
        base = {} if start.base is None else {"base": start.base}
        curve = {"fingerprint": identity, **base, "settings": settings, "loss": losses, **provenance()}
        write_json(temporary / "training.json", curve)

    cached_folder(result, build)
