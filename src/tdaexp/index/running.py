"""The highest scores so far, of scores that come piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor


class Running:
    """The k highest scores that each of Q queries has met, falling, and the `numbers` of the rows that had them.

    At equal score the earlier row comes first, or the later one (`late`).
    """

    def __init__(self, k: int, queries: Tensor, late: bool = False) -> None:
        shape, device = (len(queries), 0), queries.device
        self.k, self.late = k, late
        self.scores = torch.empty(shape, dtype=torch.float64, device=device)
        self.numbers = torch.empty(shape, dtype=torch.int64, device=device)

    def meet(self, scores: Tensor, numbers: Tensor) -> None:
        """Meet the rows `numbers` [n], rising and all later than those before, by their scores [Q, n]."""
        if not self.k:
            return
        columns = torch.arange(scores.shape[1], device=scores.device)
        if self.scores.shape[1] == self.k:  # most rows are above nobody's last one
            last = self.scores[:, -1:]
            columns = columns[((scores >= last) if self.late else (scores > last)).any(0)]
        columns = columns.flip(0) if self.late else columns
        found = [(self.scores, self.numbers), (scores[:, columns], numbers[columns].expand(len(scores), -1))]
        every, rows = (torch.cat(one, dim=1) for one in zip(*(found[::-1] if self.late else found), strict=True))
        every, order = every.sort(dim=1, descending=True, stable=True)
        self.scores, self.numbers = every[:, : self.k], rows.gather(1, order[:, : self.k])
