"""Checkpoints that appear complete or not at all: Lightning's own to resume from, hub folders to load."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdaexp.models.loaded import quiet_transformers
from tdaexp.runtime.files import atomic_path, write_text
from tdaexp.runtime.fingerprint import file_fingerprint

log = logging.getLogger(__name__)
KEPT_TO_RESUME = 2  # the newest, and the one before in case the newest is damaged
STEP = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes Lightning's checkpoints next to their place and renames them, instead of through a temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint atomically."""
        save(checkpoint, Path(path))


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a state to resume from atomically, with its digest beside it."""
    with atomic_path(path) as temporary:
        # A file object, because torch.save on a path hides the reason when the disk is full.
        with temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
        write_text(_digest_of(path), file_fingerprint(temporary))


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".digest")


def resume_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:08d}.ckpt"


def newest_readable(folder: Path) -> Path | None:
    """Return the newest checkpoint that can be read; damaged ones are logged, deleted and passed over."""
    for path in _by_step(folder):
        try:
            if file_fingerprint(path) != _digest_of(path).read_text(encoding="utf-8"):
                raise ValueError("its checksum is wrong")
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a file that is cut short
            log.warning("%s is damaged (%s); falling back to an earlier checkpoint", path, type(error).__name__)
            path.unlink()
        else:
            return path
    return None


def prune(folder: Path) -> None:
    """Delete all but the newest checkpoints."""
    for path in _by_step(folder)[KEPT_TO_RESUME:]:
        path.unlink()
        _digest_of(path).unlink(missing_ok=True)


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_hub(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Fill an existing folder with model and tokenizer in hub format."""
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
