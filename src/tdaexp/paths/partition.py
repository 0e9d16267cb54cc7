"""A partition of the training examples, whose parts are accounted for as wholes (Eichin et al. 2026, corollary F.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.tensors import TensorExamples
from tdaexp.runtime.errors import UserError, unknown

KEY = "meta:"
KINDS = "target, meta:KEY or FILE.json (example id -> part)"


@dataclass(frozen=True)
class Partition:
    """`labels` of the parts, in order, and the `codes` [N] int64 of the training examples among them."""

    labels: list[str]
    codes: Tensor

    @classmethod
    def of(cls, named: str, train: TensorExamples) -> Partition:
        """By `target` (the class), `meta:KEY`, or a JSON file from example id to part.

        Errors (UserError): something else, an unknown key, a file that is not readable or leaves an example out.
        """
        values = _values(named, train)
        kinds = sorted(set(values))
        order = {kind: place for place, kind in enumerate(kinds)}
        return cls([str(kind) for kind in kinds], torch.tensor([order[value] for value in values], device="cpu"))

    def __len__(self) -> int:
        return len(self.labels)


def _values(named: str, train: TensorExamples) -> list[Any]:
    if named == "target":
        return train.targets.tolist()
    if named.startswith(KEY):
        key = named.removeprefix(KEY)
        if key not in train.meta:
            raise unknown("key", key, train.meta, "method.partition: the training examples' meta")
        found: list[Any] = np.asarray(train.meta[key]).tolist()
        return found
    if not named.endswith(".json"):
        raise UserError(f"method.partition={named}: must be {KINDS}")
    try:
        parts = json.loads(Path(named).read_text(encoding="utf-8"))
        return [str(parts[one]) for one in train.ids]
    except KeyError as error:
        raise UserError(f"method.partition={named}: names no part for the training example {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"method.partition={named}: not readable as {{id: part}} ({error})") from error
