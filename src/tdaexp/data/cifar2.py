"""CIFAR-2, the cats and dogs of CIFAR-10 (Krizhevsky 2009), from array files in a folder or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from tdaexp.data.tables import hub_rows
from tdaexp.data.tensors import TensorCorpus, TensorDataset, TensorExamples, image_examples
from tdaexp.runtime.errors import UserError

HUB_ID = "uoft-cs/cifar10"
PARTS = ("train", "test")
CAT, DOG = 3, 5


@dataclass
class Cifar2(TensorDataset):
    """Colour images of 32 x 32 pixels, each channel centred and scaled by the training images; 0 cat, 1 dog.

    path: a folder with `train.npz` and `test.npz`, each with `images` [N, 32, 32, 3] uint8 and `labels` [N] of
    CIFAR-10, of which cats and dogs are taken. hub: an id on the hub, read where `path` is null.
    """

    train: int = 10000
    test: int = 2000
    path: str | None = None
    hub: str = HUB_ID

    IMAGES: ClassVar[tuple[int, int, int, int]] = (3, 32, 32, 2)

    @property
    def at_hand(self) -> bool:
        """Whether the images are in a folder."""
        return self.path is not None

    def load(self) -> TensorCorpus:
        """Draw the training and test images by the seed."""
        found = {part: _folder(Path(self.path), part) if self.path is not None else _hub(self.hub, part)
                 for part in PARTS}  # fmt: skip
        mean, spread = (getattr(found["train"][0], what)(axis=(0, 1, 2)) for what in ("mean", "std"))
        if not np.all(spread > 0):
            raise UserError("dataset: a channel is the same in every training image, so that it cannot be scaled")
        parts = [self._part(part, (images - mean) / spread, labels) for part, (images, labels) in found.items()]
        return TensorCorpus(parts[0], parts[1], classes=2)

    def _part(self, part: str, images: np.ndarray, labels: np.ndarray) -> TensorExamples:
        wanted = getattr(self, part)
        if wanted > len(labels):
            raise UserError(f"dataset.{part}={wanted}: there are {len(labels)} cats and dogs; ask for fewer")
        rows = np.random.default_rng([self.seed, PARTS.index(part)]).permutation(len(labels))[:wanted]
        tensors = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
        return image_examples(part, rows, tensors, labels)


def _folder(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    file = folder / f"{part}.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); it needs the arrays images [N, 32, 32, 3] uint8 and labels [N]"
        ) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{file}: images {list(images.shape)} {images.dtype} and labels {list(labels.shape)}; they must be "
            "[N, H, W, 3] uint8 and [N]"
        )
    return _cats_and_dogs(images, labels)


def _hub(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [row.values for row in hub_rows(name, None, part)]
    labels = np.array([row["label"] for row in rows])
    return _cats_and_dogs(np.stack([np.asarray(row["img"], dtype=np.uint8) for row in rows]), labels)


def _cats_and_dogs(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images from 0 to 1 and labels 0 (cat) or 1 (dog)."""
    kept = np.isin(labels, (CAT, DOG))
    return images[kept].astype(np.float32) / 255, (labels[kept] == DOG).astype(np.int64)
