"""MNIST (LeCun et al. 1998) from IDX files in a folder, or from the hub."""

from __future__ import annotations

import gzip
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.tables import hub_rows
from tdaexp.data.tensors import TensorCorpus, TensorDataset, TensorExamples, image_examples
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)
HUB_ID = "ylecun/mnist"
MEAN, SPREAD = np.float32(0.1307), np.float32(0.3081)  # of the grey, from 0 to 1, of all 60,000 training images
PARTS = {"train": "train", "test": "t10k"}
MAGIC = {"images": (2051, 3), "labels": (2049, 1)}  # first number of the file, and how many sizes follow

Pool = tuple[Tensor, np.ndarray]


@dataclass
class Mnist(TensorDataset):
    """Handwritten digits of 28 x 28 pixels, centred and scaled by the data set's mean and spread of grey.

    path: a folder with `train-…` and `t10k-images-idx3-ubyte` and their `-labels-idx1-ubyte`, each plain or `.gz`;
    where only one of the two pairs is there, training and test images are both drawn from it, without overlap.
    hub: an id on the hub, read where `path` is null.
    """

    train: int = 5120
    test: int = 1024
    path: str | None = None
    hub: str = HUB_ID

    @property
    def at_hand(self) -> bool:
        """Whether the images are in a folder."""
        return self.path is not None

    def load(self) -> TensorCorpus:
        """Draw the training images and the test images by the seed."""
        pools = _folder(Path(self.path)) if self.path is not None else _hub(self.hub)
        if len(pools) == 2:
            order = {part: np.random.default_rng([self.seed, k]) for k, part in enumerate(PARTS)}
            found = [self._part(part, pools[part], order[part]) for part in PARTS]
        else:
            ((part, pool),) = pools.items()
            log.info("mnist: training and test images are both drawn from the %d of %s", len(pool[1]), PARTS[part])
            found = [image_examples(part, rows, *pool) for rows in self.drawn(len(pool[1]))]
        return TensorCorpus(found[0], found[1], classes=10)

    def _part(self, part: str, pool: Pool, generator: np.random.Generator) -> TensorExamples:
        wanted = getattr(self, part)
        if wanted > len(pool[1]):
            raise UserError(f"dataset.{part}={wanted}: there are {len(pool[1])} images; ask for fewer")
        return image_examples(part, generator.permutation(len(pool[1]))[:wanted], *pool)


def _folder(folder: Path) -> dict[str, Pool]:
    """The pairs of files that a folder holds."""
    pools = {}
    for part, prefix in PARTS.items():
        files = {kind: _find(folder, f"{prefix}-{kind}-idx{MAGIC[kind][1]}-ubyte") for kind in MAGIC}
        if all(files.values()):
            images, labels = (read_idx(file, kind) for kind, file in files.items() if file)
            if len(images) != len(labels):
                raise UserError(f"{files['labels']}: {len(labels)} labels for {len(images)} images")
            pools[part] = _scaled(images), labels.astype(np.int64)
    if not pools:
        raise UserError(
            f"dataset.path={folder}: no MNIST there; it needs t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or "
            "those of train-, each plain or .gz (or leave dataset.path out to read the hub)"
        )
    return pools


def _find(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.exists()), None)


def read_idx(file: Path, kind: str) -> np.ndarray:
    """Read an IDX file of bytes: `images` [N, H, W] or `labels` [N] uint8.

    Raises:
        UserError: not such a file, or one that is cut short.
    """
    magic, sizes = MAGIC[kind]
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: not readable ({error}); fetch it again") from error
    head = np.frombuffer(raw[: 4 * (1 + sizes)], dtype=">i4") if len(raw) >= 4 * (1 + sizes) else np.zeros(1)
    if head[0] != magic:
        raise UserError(f"{file}: not an IDX file of {kind}; fetch it again")
    shape, body = tuple(int(size) for size in head[1:]), raw[4 * (1 + sizes) :]
    if len(body) != np.prod(shape):
        raise UserError(f"{file}: cut short, {len(body)} of {np.prod(shape)} bytes; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _scaled(images: np.ndarray) -> Tensor:
    """Bytes [N, H, W] as float32 [N, 1, H, W]."""
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / SPREAD)[:, None]


def _hub(name: str) -> dict[str, Pool]:
    pools = {}
    for part in PARTS:
        rows = [row.values for row in hub_rows(name, None, part)]
        images = np.stack([np.asarray(row["image"], dtype=np.uint8) for row in rows])
        pools[part] = _scaled(images), np.array([row["label"] for row in rows], dtype=np.int64)
    return pools
