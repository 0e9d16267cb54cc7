"""Per-component dot products and squared norms of per-example gradients, for the pairs of a candidate list.

Both self-products are kept beside the dot product, so that the cosine of any subset of components is a
matter of sums (Select or Project, A.2). A block's queries are captured and held; its candidates then stream
past them: as soon as the backward pass has a component of a training batch, it is multiplied with the held
queries' and dropped. Each block's values are a pure function of the block, and a killed run goes on at the
block where it stopped: its results have the same bits as those of a straight run.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.examples import Examples, collate
from tdaexp.gradients.assembly import Consumer
from tdaexp.gradients.capture import capture, frozen
from tdaexp.gradients.dots import pair_dots, self_dots
from tdaexp.gradients.factors import Factors, accumulation_dtype, compact
from tdaexp.gradients.finite import check_losses, require_finite
from tdaexp.gradients.memory import held_bytes
from tdaexp.gradients.pairs import Pairs
from tdaexp.gradients.schedule import Block, kept_plan, plan_blocks
from tdaexp.influence import BlockStore
from tdaexp.models.components import Component, ComponentMap
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def component_products(
    model: PreTrainedModel,
    components: ComponentMap,
    train: Examples,
    queries: Examples,
    pairs: np.ndarray,
    *,
    store: Path,
    reduction: str = "mean",
    tokens_per_batch: int = 4096,
    cache_gb: float = 2.0,
    pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """Dot products of per-example loss gradients, by component, for Q queries and their C candidates each.

    `pairs` [Q, C] int indexes `train`, -1 for no candidate. Runs on the model's device and in its dtype;
    products are float32, or float64 for a float64 model. Returns `dot` [Q, C, K], `query_sq` [Q, K],
    `train_sq` [Q, C, K], NaN where there is no candidate. `store` is a folder named after all that the
    result depends on; what it already holds is not computed again. `cache_gb` (10^9 bytes) bounds the
    queries' gradients that are held at a time: with less memory, training examples run more often.

    Errors (UserError): an example without loss, NaN or Inf in a gradient, a candidate outside the training
    set.
    """
    pairs = np.asarray(pairs, dtype=np.int64)
    _check(pairs, train, queries)
    sizes = held_bytes(components, queries, model.dtype)
    lengths = queries.lengths, train.lengths
    wanted = plan_blocks(pairs, *lengths, sizes, tokens_per_batch, cache_gb * 1e9)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), wanted)
    order = [query for block in plan for batch in block.queries for query in batch]
    blocks = BlockStore(store, _arrays(pairs, len(components), model.dtype), _slices(plan))
    missing = blocks.missing()
    work = _Work(model, components, train, queries, pairs, reduction, pad_id)
    with frozen(model):
        for number in track(missing, "gradient products", len(plan), len(plan) - len(missing)):
            blocks.write(number, work.block(plan[number]))
    if missing:
        log.info("%s", work.summary())
    back = np.argsort(order)
    return {name: values[back] for name, values in blocks.read().items()}


def _check(pairs: np.ndarray, train: Examples, queries: Examples) -> None:
    if pairs.ndim != 2 or len(pairs) != len(queries):
        raise UserError(
            f"candidates of shape {pairs.shape} for {len(queries)} queries; give one row per query"
        )
    if pairs.size and (pairs.min() < -1 or pairs.max() >= len(train)):
        raise UserError(f"a candidate's number is outside 0 … {len(train) - 1}, the training examples")
    check_losses(queries, "query")
    check_losses(Examples([train[index] for index in np.unique(pairs[pairs >= 0])]), "training")


def _arrays(pairs: np.ndarray, components: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], str]]:
    kind = str(accumulation_dtype(dtype)).removeprefix("torch.")
    shape = (*pairs.shape, components)
    return {"dot": (shape, kind), "train_sq": (shape, kind), "query_sq": ((len(pairs), components), kind)}


def _slices(plan: list[Block]) -> list[slice]:
    """Rows of the store that each block fills."""
    ends = np.cumsum([sum(map(len, block.queries)) for block in plan])
    return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass
class _Held:
    """A batch of queries with its factors in component order, and where its rows are in the block."""

    members: list[int]
    first: int
    factors: list[Factors]


@dataclass
class _Work:
    """Computes blocks, and counts passes and the forms that gradients were held in."""

    model: PreTrainedModel
    components: ComponentMap
    train: Examples
    queries: Examples
    pairs: np.ndarray
    reduction: str
    pad_id: int
    passes: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.column = {name: k for k, name in enumerate(self.components.names)}
        self.device = next(self.model.parameters()).device
        self.dtype = accumulation_dtype(self.model.dtype)

    def block(self, block: Block) -> dict[str, np.ndarray]:
        """The values of a block's queries, in the order in which the block lists them."""
        rows, candidates = sum(map(len, block.queries)), self.pairs.shape[1]
        blank = np.full(
            (rows, candidates, len(self.components)), np.nan, str(self.dtype).removeprefix("torch.")
        )
        values = {"dot": blank, "train_sq": blank.copy(), "query_sq": blank[:, 0].copy()}
        held: list[_Held] = []
        for members in block.queries:
            first = held[-1].first + len(held[-1].members) if held else 0
            factors, squares = self._hold(members)
            values["query_sq"][first : first + len(members)] = squares
            held.append(_Held(members, first, factors))
        for members in block.train:
            self._stream(members, held, values)
        return values

    def _hold(self, members: list[int]) -> tuple[list[Factors], np.ndarray]:
        """Capture a batch of queries: factors in component order, and squared norms [B, K]."""
        found: dict[int, Factors] = {}
        squares = self._blank(len(members))

        def consume(components: list[Component], factors: list[Factors]) -> None:
            columns = [self.column[component.name] for component in components]
            mine = [compact(one) for one in factors]
            squares[:, columns] = self_dots(mine)
            found.update(zip(columns, mine, strict=True))

        self._pass("query", self.queries, members, consume, squares)
        self.forms.update(type(one).__name__ for one in found.values())
        return [found[k] for k in range(len(self.components))], squares.cpu().numpy()

    def _stream(self, members: list[int], held: list[_Held], values: dict[str, np.ndarray]) -> None:
        """Run a batch of training examples past the held queries, and write down the products of its
        pairs.
        """
        row = np.full(len(self.train), -1)
        row[members] = np.arange(len(members))
        meetings = []
        for batch in held:
            candidates = self.pairs[batch.members]
            places = np.nonzero(np.where(candidates >= 0, row[candidates], -1) >= 0)
            if len(places[0]):
                there = row[candidates[places]]
                pairs = Pairs(*(torch.from_numpy(side).to(self.device) for side in (places[0], there)))
                meetings.append((batch, places, there, pairs, self._blank(len(there))))
        squares = self._blank(len(members))

        def consume(components: list[Component], factors: list[Factors]) -> None:
            columns = [self.column[component.name] for component in components]
            mine = [compact(one) for one in factors]
            squares[:, columns] = self_dots(mine)
            for batch, _, _, pairs, dots in meetings:
                dots[:, columns] = pair_dots([batch.factors[k] for k in columns], mine, pairs)

        self._pass("training", self.train, members, consume, squares)
        for batch, (rows, columns), there, _, dots in meetings:
            values["dot"][batch.first + rows, columns] = dots.cpu().numpy()
            values["train_sq"][batch.first + rows, columns] = squares.cpu().numpy()[there]

    def _blank(self, rows: int) -> Tensor:
        return torch.full((rows, len(self.components)), torch.nan, device=self.device, dtype=self.dtype)

    def _pass(
        self, what: str, examples: Examples, members: list[int], consume: Consumer, squares: Tensor
    ) -> None:
        """One forward-backward pass; NaN and Inf in the squared norms that `consume` fills in are refused."""
        chosen = [examples[index] for index in members]
        batch = collate(chosen, self.pad_id)
        losses = capture(self.model, self.components, batch, consume, reduction=self.reduction)
        self.passes[what] += len(members)
        ids = [example.id for example in chosen]
        require_finite(squares.cpu().numpy(), ids, self.components.names, losses.cpu().numpy())

    def summary(self) -> str:
        """One line: how many passes were made, and in which forms gradients were multiplied."""
        passes = ", ".join(f"{count} {what}" for what, count in self.passes.items())
        batches = sum(self.forms.values()) / max(len(self.components), 1)
        explicit = self.forms["VectorFactors"] / max(batches, 1)
        return (
            f"forward-backward passes: {passes}; of {len(self.components)} components, {explicit:.4g} held as "
            "explicit gradients, the others as factors"
        )
