"""Hidden states of examples, batch by batch and without any gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.gradients.passes import Gradients
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.progress import track
from tdaexp.runtime.rehearsal import each_of, padded, sampled

Use = Callable[[Tensor, Tensor], list[Tensor]]
"""States [B, T, d] and which positions are real [B, T], these on the host, to a tensor for each example."""


def hidden_states(
    problem: Problem, examples: Any, layer: int, use: Use, wanted: np.ndarray | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Examples by number, and what `use` makes of their states after `layer`.

    All examples, shared out over the processes of the run; or, in every process, those that are `wanted` and others in
    their batches. Batches do not depend on what is wanted, so that neither do the states. Errors (UserError): a state
    that is not finite.
    """
    side = Gradients(problem.model, problem.map, examples, problem.objective)
    batches, me = side.batches(problem.compute.tokens_per_batch), ranks.current()
    if wanted is None:
        mine, each = batches[me.rank :: me.world], me.world
    else:
        mine, each = [batch for batch in batches if np.isin(batch, wanted).any()], 1
    later = Deferred()

    def check(members: list[int], finite: np.ndarray) -> None:
        if not finite.all():
            raise UserError(
                f"example '{side.ids[members[int(finite.argmin())]]}': its hidden states in layer {layer} are not "
                "finite; check the checkpoint, or try trainer.precision=float32"
            )

    def run(members: list[int]) -> list[Tensor]:
        with torch.no_grad():
            return use(*problem.objective.states(problem.model, examples, members, layer))

    compute = Shrinking(run, two, lambda parts: [one for part in parts for one in part])
    with side.ready():
        for members in track(
            sampled(mine, padded(side.lengths)), "hidden states", len(mine) if each == 1 else len(batches), each=each
        ):
            found = compute(members)
            later.add(partial(check, members), torch.stack([torch.isfinite(one).all() for one in found]))
            yield from each_of(list(zip(members, found, strict=True)), mine)
        later.flush()
