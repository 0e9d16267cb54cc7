"""Data of classification tasks: inputs as tensors and one class per example, instead of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.limits import check_limits
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.fingerprint import fingerprint


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """N labelled examples.

    `ids` [N]; `inputs` [N, ...], int64 tokens or float32 images; `targets` [N] int64, the right class;
    `meta`: name to values [N], what is known of each example besides (for plots and truth).
    """

    ids: list[str]
    inputs: Tensor
    targets: Tensor
    meta: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> list[str]:
        """Id and class of each, and its tokens where it has some."""
        shown = [f"class {target}" for target in self.targets.tolist()]
        if not self.inputs.is_floating_point():
            rows = self.inputs.flatten(1).tolist()
            shown = [f"{' '.join(map(str, row))} ({text})" for row, text in zip(rows, shown, strict=True)]
        return [f"{one}: {text}" for one, text in zip(self.ids, shown, strict=True)]

    def select(self, indices: Sequence[int] | np.ndarray) -> TensorExamples:
        """The examples at `indices`, in that order."""
        places = np.asarray(indices, dtype=np.int64)
        rows = torch.from_numpy(places)
        meta = {name: values[places] for name, values in self.meta.items()}
        return TensorExamples([self.ids[place] for place in places], self.inputs[rows], self.targets[rows], meta)

    def fingerprint(self) -> str:
        """Hash of ids, inputs and targets in order."""
        return fingerprint(self.ids, self.inputs.numpy(), self.targets.numpy())


@dataclass(frozen=True, eq=False)
class TensorCorpus:
    """Training and test examples of one task with `classes` classes; no example is in both."""

    train: TensorExamples
    test: TensorExamples
    classes: int

    def __post_init__(self) -> None:
        """Refuse a task without examples, and ids that stand twice."""
        for part, examples in (("train", self.train), ("test", self.test)):
            if not len(examples):
                raise UserError(f"the data set has no {part} example; raise dataset.{part}")
        if len({*self.train.ids, *self.test.ids}) < len(self.train) + len(self.test):
            raise UserError("the data set has the same example id twice; make the ids unique")


@dataclass
class TensorDataset(ABC):
    """Keys that every classification task reads.

    train, test: how many examples are drawn, without overlap. seed: of the draw. query_sets: what is asked about,
    of `test` and `train`. query_limit: ask about the first so many of each set (null: all). Faults for methods to find,
    planted in the training examples by the seed (`data.faults`): flipped: the share whose class is made a wrong one.
    repeated: the share that repeats another.
    """

    train: int
    test: int
    seed: int = 0
    query_sets: list[str] = field(default_factory=lambda: ["test"])
    query_limit: int | None = None
    flipped: float = 0.0
    repeated: float = 0.0

    QUERY_SETS: ClassVar[tuple[str, ...]] = ("test", "train")
    IMAGES: ClassVar[tuple[int, int, int, int]] = (1, 28, 28, 10)
    """Channels, height, width and classes of data from the hub."""

    def __post_init__(self) -> None:
        """Refuse counts below one and unknown query sets."""
        for key in ("train", "test"):
            if getattr(self, key) < 1:
                raise UserError(f"dataset.{key}={getattr(self, key)}: must be at least 1")
        check_limits(self, "query_limit")
        for key, most in (("flipped", 1.0), ("repeated", 0.5)):
            share = getattr(self, key)
            if not 0 <= share <= most or (share > 0 and round(share * self.train) == 0):
                raise UserError(
                    f"dataset.{key}={share:g}: must be 0 or a share of dataset.train={self.train}, up to {most:g}, "
                    "that makes at least one example"
                )
        for name in self.query_sets:
            if name not in self.QUERY_SETS:
                raise unknown("query set", name, self.QUERY_SETS, "dataset.query_sets")

    @property
    def at_hand(self) -> bool:
        """Whether `load` needs no network."""
        return True

    def blank(self) -> TensorCorpus:
        """Empty images of the right number and size, for a plan where the data is not at hand."""
        channels, height, width, classes = self.IMAGES
        parts = [
            TensorExamples(
                [f"{part}-{row}" for row in range(count)],
                torch.zeros(1, channels, height, width).expand(count, -1, -1, -1),
                torch.zeros(count, dtype=torch.int64),
            )
            for part, count in (("train", self.train), ("test", self.test))
        ]
        return TensorCorpus(parts[0], parts[1], classes)

    def check_source(self) -> None:
        """Nothing to refuse: every task has a source by default."""
        return

    def corpus(self) -> TensorCorpus:
        """The training and test examples with the faults that are asked for. Errors as of `load`."""
        from tdaexp.data.faults import flipped, repeated

        found = self.load()
        train = repeated(found.train, round(self.repeated * len(found.train)), self.seed)
        train = flipped(train, round(self.flipped * len(train)), self.seed)
        return TensorCorpus(train, found.test, found.classes)

    @abstractmethod
    def load(self) -> TensorCorpus:
        """Read or generate the training and test examples.

        Raises:
            UserError: files that are missing or damaged, or fewer examples than asked for.
        """

    def drawn(self, pool: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and of the test examples among `pool`, drawn by the seed, without overlap."""
        if self.train + self.test > pool:
            raise UserError(
                f"dataset.train={self.train} and dataset.test={self.test}: the data has {pool} examples in all; "
                "ask for fewer"
            )
        order = np.random.default_rng(self.seed).permutation(pool)
        return order[: self.train], order[self.train : self.train + self.test]


def image_examples(part: str, rows: np.ndarray, images: Tensor, labels: np.ndarray) -> TensorExamples:
    """The images [N, C, H, W] and labels [N] at `rows`; ids say which row of which part an image was."""
    targets = labels[rows].astype(np.int64)
    ids = [f"{part}-{row}" for row in rows]
    return TensorExamples(ids, images[torch.from_numpy(rows)], torch.from_numpy(targets), {"label": targets})
