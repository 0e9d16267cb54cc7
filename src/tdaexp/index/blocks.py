"""A block of an index: the rows of some documents that follow each other, in a sealed folder that appears whole.

    KEY/rows.npy       [n, D] in the documents' order, as they are kept (`storage`)
    KEY/scale.npy      [n, K] float32, where they are kept in fewer bits
    KEY/documents.json ids of the documents
    KEY/seconds.json   how long computing them took
    KEY/checksums.json digests of all that (`runtime.seal`)

KEY is a fingerprint of all that decides the rows: the model, its components, how they are projected and kept, and the
documents of this block. So a block serves every corpus that has these documents in this place, whoever builds it and
wherever: to bring two indexes together, or to add documents to one, is to put folders beside each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdaexp.runtime import seal
from tdaexp.runtime.block_files import SECONDS
from tdaexp.runtime.files import atomic_path, write_json

log = logging.getLogger(__name__)
ROWS, SCALE, DOCUMENTS = "rows.npy", "scale.npy", "documents.json"


@dataclass(frozen=True)
class Block:
    """The rows `start` to `stop` of a corpus; `named` gives their folder, for which it has to look at the documents."""

    named: Callable[[], Path]
    start: int
    stop: int

    @cached_property
    def path(self) -> Path:
        """The folder."""
        return self.named()

    def __len__(self) -> int:
        return self.stop - self.start

    def there(self) -> bool:
        """Whether its folder is there and reads as it was written; one that does not is named."""
        broken = seal.damage(self.path) if self.path.exists() else None
        if broken is not None:
            log.warning("%s: a damaged block of an index (%s), which is built again", self.path, broken)
        return broken is None and self.path.exists()

    def write(self, rows: Tensor, scale: Tensor | None, ids: list[str], seconds: float) -> None:
        """Leave the whole folder, in place of a damaged one. To be called under a lock of its path."""
        with atomic_path(self.path) as temporary:
            temporary.mkdir()
            np.save(temporary / ROWS, rows.numpy())
            if scale is not None:
                np.save(temporary / SCALE, scale.numpy())
            write_json(temporary / DOCUMENTS, ids)
            write_json(temporary / SECONDS, seconds)
            seal.seal(temporary)

    def read(self, rows: slice | np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Some of its rows as they are kept, counted from its own first one, and their scales."""
        kept = np.load(self.path / ROWS, mmap_mode="r")
        scale = np.load(self.path / SCALE)[rows] if (self.path / SCALE).exists() else None
        found = torch.from_numpy(np.array(kept[rows]))  # of the file's pages no more than these
        return found, None if scale is None else torch.from_numpy(scale)
