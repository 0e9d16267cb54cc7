"""Faults planted in the training examples of a classification task, so that it is known which rows are faulty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tdaexp.data.tensors import TensorExamples
from tdaexp.runtime.errors import UserError

FLIPPED, REPEATS = "flipped", "repeats"
"""Names in `meta` of what is known of each example: its class was made a wrong one; the id that it repeats, or ""."""
AGAIN = "/again"
"""Behind the id of an example that repeats one."""


def flipped(examples: TensorExamples, count: int, seed: int) -> TensorExamples:
    """The examples, `count` of them with another class: any of the others that occur, drawn by the seed."""
    if not count:
        return examples
    classes, place = np.unique(examples.targets.numpy(), return_inverse=True)
    if len(classes) < 2:
        raise UserError("dataset.flipped: all training examples are of one class; take more, or leave it 0")
    generator = np.random.default_rng([seed, 1])
    rows = generator.choice(len(examples), count, replace=False)
    place[rows] = (place[rows] + generator.integers(1, len(classes), count)) % len(classes)
    wrong = np.zeros(len(examples), dtype=bool)
    wrong[rows] = True
    return replace(examples, targets=torch.from_numpy(classes[place]), meta={**examples.meta, FLIPPED: wrong})


def repeated(examples: TensorExamples, count: int, seed: int) -> TensorExamples:
    """The examples, `count` of them replaced by copies of others, each of another one, drawn by the seed."""
    if not count:
        return examples
    order = np.random.default_rng([seed, 2]).permutation(len(examples))
    source = np.arange(len(examples))
    source[order[:count]] = order[count : 2 * count]
    again = source != np.arange(len(examples))
    found = examples.select(source)
    ids = [f"{one}{AGAIN}" if copy else one for one, copy in zip(found.ids, again, strict=True)]
    of = np.array([one if copy else "" for one, copy in zip(found.ids, again, strict=True)], dtype=object)
    return replace(found, ids=ids, meta={**found.meta, REPEATS: of})
