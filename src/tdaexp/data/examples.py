"""Tokenised examples and the padded batches made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime.deferred import send
from tdaexp.runtime.fingerprint import fingerprint


@dataclass(frozen=True)
class Example:
    """One tokenised record.

    `tokens` [T] int64; `loss_mask` [T] bool, True where the token is *predicted* and its loss counts
    (position 0 is never predicted); `text` is for people, and begins with `prompt` where there is one. `document` is
    the id of the record that it is a piece of, where long ones are cut into pieces. `rejected` is the same with an
    answer that is not wanted: what is asked is then how much likelier the first one is.
    """

    id: str
    tokens: np.ndarray
    loss_mask: np.ndarray
    text: str
    document: str | None = None
    rejected: Example | None = None
    prompt: str = ""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


class Examples(Sequence[Example]):
    """An ordered list of examples with a fingerprint of all that a gradient can depend on."""

    def __init__(self, items: Sequence[Example]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return one example, or the examples of a slice."""
        return Examples(self.items[index]) if isinstance(index, slice) else self.items[index]

    def select(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indices`, in that order."""
        return Examples([self.items[int(index)] for index in indices])

    @cached_property
    def ids(self) -> list[str]:
        """Ids in order; made once, as they are looked up one by one."""
        return [item.id for item in self.items]

    @property
    def texts(self) -> list[str]:
        """The records' texts in order."""
        return [item.text for item in self.items]

    @property
    def prompts(self) -> list[str]:
        """The records' prompts in order, "" where there is none."""
        return [item.prompt for item in self.items]

    @property
    def lengths(self) -> np.ndarray:
        """Token counts [N]."""
        return np.array([item.length for item in self.items], dtype=np.int64)

    @cached_property
    def contrastive(self) -> bool:
        """Whether one of them has an answer that is not wanted beside the wanted one."""
        return any(item.rejected is not None for item in self.items)

    def fingerprint(self) -> str:
        """Hash of ids, tokens and loss masks in order."""
        return fingerprint([_deciding(item) for item in self.items])


def _deciding(item: Example) -> list[Any]:
    other = [] if item.rejected is None else [item.rejected.tokens, item.rejected.loss_mask]
    return [item.id, item.tokens, item.loss_mask, *other]


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors of B examples: `tokens` [B, T] int64, `attention` [B, T] int64 (1 = real token),
    `loss_mask` [B, T] bool (True where the token at t is predicted from the logits at t - 1).
    """

    tokens: Tensor
    attention: Tensor
    loss_mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        place = torch.device(device)
        return Batch(send(self.tokens, place), send(self.attention, place), send(self.loss_mask, place))


def collate(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Pad to the longest example on the right: under causal attention no real token sees the padding."""
    width = max(example.length for example in examples)
    tokens = torch.full((len(examples), width), pad_id, dtype=torch.int64, device="cpu")
    attention = torch.zeros((len(examples), width), dtype=torch.int64, device="cpu")
    loss_mask = torch.zeros((len(examples), width), dtype=torch.bool, device="cpu")
    for row, example in enumerate(examples):
        tokens[row, : example.length] = torch.from_numpy(example.tokens)
        attention[row, : example.length] = 1
        loss_mask[row, : example.length] = torch.from_numpy(example.loss_mask)
    loss_mask[:, 0] = False
    return Batch(tokens, attention, loss_mask)


def token_budget_batches(lengths: np.ndarray, order: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Cut `order` into consecutive batches whose padded size (count × longest) stays within the budget.

    A single example longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]))
        if batches and longest * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = int(lengths[index])
    return batches
