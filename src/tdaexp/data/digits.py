"""scikit-learn's bundled digits: 1,797 real handwritten digits of 8 x 8 pixels; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tdaexp.data.tensors import TensorCorpus, TensorDataset, image_examples

DEEPEST = 16.0  # the images' highest grey


@dataclass
class Digits(TensorDataset):
    """Ten classes, one channel, grey from 0 to 1."""

    train: int = 1280
    test: int = 512

    def load(self) -> TensorCorpus:
        """Draw training and test images from the 1,797."""
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy((found.images / DEEPEST).astype(np.float32))[:, None]
        train, test = self.drawn(len(images))
        parts = [image_examples("digit", rows, images, found.target) for rows in (train, test)]
        return TensorCorpus(parts[0], parts[1], classes=10)
