"""A loss of somebody's own: any module, any data set, and a function from a batch to a number for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from tdaexp.objectives.base import Inputs, Loss, Objective, cross_entropy
from tdaexp.runtime.behaviour import behaviour
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint

NEEDS_OUTPUTS = (
    "a loss of your own does not tell what the model's outputs are, so that no label can be drawn from them; "
    "curvature and hidden states need an objective with `outputs` (tdaexp.objectives); take method=dot, full, "
    "project, cka, trak, tracin, datainf or trackstar"
)


@dataclass(frozen=True, eq=False)
class OwnExamples:
    """A data set with a length: items of whatever `collate` batches (tensors and numbers in tuples or dicts)."""

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    names: tuple[str, ...] | None = None
    places: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.dataset) if self.places is None else len(self.places)

    @cached_property
    def ids(self) -> list[str]:
        """Places in the data set, or the names that were given; made once, as they are looked up one by one."""
        every = self.names or [str(place) for place in range(len(self.dataset))]
        return list(every) if self.places is None else [every[place] for place in self.places]

    @property
    def texts(self) -> list[str]:
        """Their ids: what the items are is not known."""
        return self.ids

    def batch(self, members: Sequence[int]) -> Any:
        """Some items as one batch."""
        places = self.places or range(len(self.dataset))
        return self.collate([self.dataset[places[member]] for member in members])

    def select(self, indices: Sequence[int] | np.ndarray) -> OwnExamples:
        """The examples at `indices`, in that order."""
        places = self.places or range(len(self.dataset))
        chosen = tuple(places[int(index)] for index in indices)
        return OwnExamples(self.dataset, self.collate, self.names, chosen)

    @cached_property
    def _digest(self) -> str:
        return fingerprint(self.ids, [behaviour(self.batch([member])) for member in range(len(self))])

    def fingerprint(self) -> str:
        """Hash of ids and all that the items hold."""
        return self._digest


@dataclass(frozen=True)
class OwnLoss(Objective[OwnExamples]):
    """The loss of a batch is `function(model, batch)`, a tensor [B]; a query's measurement is minus its loss."""

    function: Callable[[nn.Module, Any], Tensor]

    @property
    def gives_probabilities(self) -> bool:
        """Not that anybody knows."""
        return False

    def lengths(self, model: nn.Module, examples: OwnExamples) -> np.ndarray:
        """As many positions as an item has numbers along its second axis; one where it has none."""
        row = [one for one in tree_leaves(examples.batch([0])) if isinstance(one, Tensor) and one.ndim > 1]
        return np.full(len(examples), max((one.shape[1] for one in row), default=1), dtype=np.int64)

    def batch(self, examples: OwnExamples, members: Sequence[int], reduction: str = "mean") -> Inputs:
        """The items as `collate` batches them."""
        ids = [examples.ids[member] for member in members]
        ones = torch.ones(len(ids), 1, dtype=torch.float64, device="cpu")
        return Inputs(ids, examples.batch(members), torch.zeros(len(ids), 1, dtype=torch.int64, device="cpu"), ones)

    def losses(self, model: nn.Module, inputs: Inputs, loss: Loss) -> Tensor:
        """The function's numbers. Errors (UserError): another shape than [B], another measurement than minus them."""
        measured = getattr(loss, "measures", None)
        if measured == "logit_margin":
            raise UserError(NEEDS_OUTPUTS)
        if loss is not cross_entropy and measured != "log_likelihood":
            raise UserError("method.measurement: with a loss of your own the measurement is minus that loss; leave it")
        found = self.function(model, inputs.inputs)
        if not isinstance(found, Tensor) or found.shape != (len(inputs.weights),):
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"the loss function gives {given} for {len(inputs.weights)} examples; it must return one number for "
                "each, [B] (with reduction='none', and no mean)"
            )
        return found

    def outputs(self, model: nn.Module, inputs: Inputs) -> NoReturn:
        """Unknown."""
        raise UserError(NEEDS_OUTPUTS)

    def states(self, model: nn.Module, examples: OwnExamples, members: Sequence[int], layer: int) -> NoReturn:
        """Unknown."""
        raise UserError(NEEDS_OUTPUTS)
