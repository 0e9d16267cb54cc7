"""Which rows of the training set are in each batch, read off the sampler that a DataLoader asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from tdaexp.runtime.errors import UserError


class BatchRows:
    """Stands before a DataLoader's batch sampler and remembers what that gives out; `next` is the next batch's rows.

    Batches come in the order in which they were asked for, whatever the number of workers, so that theirs are the rows
    that were given out first. A new round over the loader forgets what the last one did not use.
    """

    def __init__(self, loader: Any) -> None:
        """Errors (UserError): no DataLoader, or one of a stream."""
        if loader is None:
            raise UserError("loop: which rows are in a batch is read off the DataLoader; give it (loader=LOADER)")
        self._loader = getattr(loader, "base_dataloader", loader)  # of Accelerate's
        if not isinstance(self._loader, DataLoader) or isinstance(self._loader.dataset, IterableDataset):
            raise UserError(
                f"loop: a {type(loader).__name__} of a stream has no numbered rows; train on a DataLoader of a data "
                "set with a length"
            )
        if self._loader.batch_sampler is None:
            raise UserError("loop: the DataLoader makes no batches itself (batch_size=None); give it a batch_size")
        self.items: Any = self._loader.dataset
        self.collate: Any = self._loader.collate_fn
        self._waiting: deque[list[int]] = deque()
        self._sampler: Any = self._loader.batch_sampler
        vars(self._loader)["batch_sampler"] = self  # which the loader refuses to be assigned

    def __iter__(self) -> Iterator[list[int]]:
        self._waiting.clear()
        for batch in self._sampler:
            self._waiting.append([int(row) for row in batch])
            yield batch

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        """Anything else is the sampler's own."""
        if name.startswith("__") or "_sampler" not in vars(self):
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def next(self) -> list[int]:
        """Rows of the batch of the pass that begins. Errors (UserError): there are more passes than batches."""
        if not self._waiting:
            raise UserError(
                "loop: the model was run more often with derivatives than the loader gave batches, so that it is not "
                "known whose gradients these are; run it once a batch, and anything else under torch.no_grad()"
            )
        return self._waiting.popleft()

    def leave(self) -> None:
        """Put the loader's own sampler back."""
        if self._loader.batch_sampler is self:
            vars(self._loader)["batch_sampler"] = self._sampler
