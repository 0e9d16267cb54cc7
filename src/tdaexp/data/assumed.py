"""Stated sizes of data that a plan cannot look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tdaexp.runtime.errors import UserError

if TYPE_CHECKING:
    from tdaexp.data.sizes import Sizes


@dataclass
class Assumed:
    """Sizes that a plan takes for data that is not at hand.

    Keys: `train` examples; `queries` of each set; `prompt` and `completion` lengths in tokens as quantiles at equal
    distances, from the shortest to the longest.
    """

    train: int
    queries: int
    prompt: list[int] = field(default_factory=lambda: [0])
    completion: list[int] = field(default_factory=lambda: [128])

    def __post_init__(self) -> None:
        """Refuse counts below one and lengths without an entry."""
        if min(self.train, self.queries) < 1 or not self.prompt or min(self.completion, default=0) < 1:
            raise UserError(
                "dataset.assumed: counts and completion lengths must be at least 1, prompt must not be empty"
            )

    def sizes(self, count: int, max_length: int, seed: int = 0) -> Sizes:
        """`count` examples with prompts and completions of these lengths, independent of each other."""
        from tdaexp.data.sizes import Sizes

        at = (np.arange(count) + 0.5) / count
        prompt, completion = (
            np.interp(at, np.linspace(0, 1, max(len(quantiles), 2)), quantiles if len(quantiles) > 1 else quantiles * 2)
            for quantiles in (self.prompt, self.completion)
        )
        return Sizes.cut(np.random.default_rng(seed).permutation(prompt), completion, max_length)
