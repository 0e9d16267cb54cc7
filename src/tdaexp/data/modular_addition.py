"""Modular addition (Varma et al. 2023), as in ExPLAIND E.2: [a] [+] [b] [mod p =], and the answer (a + b) mod p."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tdaexp.data.tensors import TensorCorpus, TensorDataset, TensorExamples
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.limits import refuse_beyond

PAIR_BYTES = 10  # of a pair of numbers while they are listed: a flag, and two indices of every other pair

DRAWS = ("generator", "explaind")


@dataclass
class ModularAddition(TensorDataset):
    """Pairs with a ≥ b, so that no sum stands in both orders.

    modulus: p; the numbers are the tokens 0 … p - 1, `+` is p and `mod p =` is p + 1.
    equal: whether a = b is allowed. The paper asks for a ≥ b, which gives 6,441 pairs for p = 113, and counts 6,328
        of them, which is a > b; false gives that count.
    draw: `generator`, numpy's present one, or `explaind`, as the authors' program draws by the same seed (theirs is 0):
        numpy's older generator, pairs listed by b, test examples first.
    """

    train: int = 4000
    test: int = 2000
    modulus: int = 113
    equal: bool = True
    draw: str = "generator"

    def __post_init__(self) -> None:
        """Refuse a modulus without a pair."""
        super().__post_init__()
        if self.modulus < 2:
            raise UserError(f"dataset.modulus={self.modulus}: must be at least 2")
        if self.draw not in DRAWS:
            raise unknown("value", self.draw, DRAWS, "dataset.draw")

    def load(self) -> TensorCorpus:
        """Draw the training and test pairs. `meta` holds a, b, `sum` (a + b) and `residue`."""
        needed = PAIR_BYTES * float(self.modulus) ** 2
        refuse_beyond(needed, f"dataset.modulus={self.modulus}", "take a smaller one: there are modulus² pairs")
        least = 0 if self.equal else 1
        if self.draw == "explaind":
            b, a = np.triu_indices(self.modulus, least)
        else:
            a, b = np.tril_indices(self.modulus, -least)
        train, test = self.drawn(len(a))
        return TensorCorpus(self._examples(a[train], b[train]), self._examples(a[test], b[test]), self.modulus + 2)

    def drawn(self, pool: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and of the test examples, as `draw` says."""
        train, test = super().drawn(pool)
        if self.draw == "generator":
            return train, test
        older = np.random.RandomState(self.seed)
        older.permutation(pool)  # the program draws a third part without examples first
        test = older.permutation(pool)[: self.test]
        rest = np.setdiff1d(np.arange(pool), test)
        return rest[older.permutation(len(rest))[: self.train]], test

    def _examples(self, a: np.ndarray, b: np.ndarray) -> TensorExamples:
        plus, equals = np.full_like(a, self.modulus), np.full_like(a, self.modulus + 1)
        residue = (a + b) % self.modulus
        tokens = np.stack([a, plus, b, equals], axis=1).astype(np.int64)
        ids = [f"{x}+{y}" for x, y in zip(a, b, strict=True)]
        meta = {"a": a, "b": b, "sum": a + b, "residue": residue}
        return TensorExamples(ids, torch.from_numpy(tokens), torch.from_numpy(residue.astype(np.int64)), meta)
