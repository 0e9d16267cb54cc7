"""Per-component dot products and squared norms of per-example gradients, for the pairs of a candidate list.

Both self-products are kept beside the dot product, so that the cosine of any subset of components is a
matter of sums (Select or Project, A.2). Each block's values are a pure function of the block (`blocks`), and
a killed run goes on at the block where it stopped: its results have the same bits as those of a straight run.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tdaexp.data.examples import Examples
from tdaexp.gradients.blocks import BlockWork
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.factors import accumulation_dtype
from tdaexp.gradients.finite import check_losses
from tdaexp.gradients.memory import held_bytes
from tdaexp.gradients.schedule import halves, kept_plan, listed, plan_blocks, rows_of
from tdaexp.models.components import ComponentMap
from tdaexp.models.forward import runs_whole
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.shrink import Shrinking, joined

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

    Errors (UserError): an example without loss, NaN or Inf in a gradient, a candidate outside the training set.
    """
    pairs = np.asarray(pairs, dtype=np.int64)
    _check(pairs, train, queries)
    sizes = held_bytes(components, queries, model.dtype, runs_whole(model))
    lengths = queries.lengths, train.lengths
    wanted = plan_blocks(pairs, *lengths, sizes, tokens_per_batch, cache_gb * 1e9)
    plan = kept_plan(store.with_name(store.name + ".plan.json"), wanted)
    order = listed(plan)
    blocks = BlockStore(store, _arrays(pairs, len(components), model.dtype), rows_of(plan))
    work = BlockWork(model, components, train, queries, pairs, reduction, pad_id)
    compute = Shrinking(lambda block: work.block(block), lambda block: halves(block, pairs), joined)
    with frozen(model), blocks.pending() as missing:
        for number in blocks.each(missing, "gradient products"):
            blocks.write(number, compute(plan[number]))
    if missing:
        log.info("%s", work.summary())
    back = np.argsort(order)
    return {name: values[back] for name, values in blocks.read().items()}


def _check(pairs: np.ndarray, train: Examples, queries: Examples) -> None:
    if pairs.ndim != 2 or len(pairs) != len(queries):
        raise UserError(f"candidates of shape {pairs.shape} for {len(queries)} queries; give one row per query")
    if pairs.size and (pairs.min() < -1 or pairs.max() >= len(train)):
        raise UserError(f"a candidate's number is outside 0 … {len(train) - 1}, the training examples")
    check_losses(queries, "query")
    check_losses(Examples([train[index] for index in np.unique(pairs[pairs >= 0])]), "training")


def _arrays(pairs: np.ndarray, components: int, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], str]]:
    kind = str(accumulation_dtype(dtype)).removeprefix("torch.")
    shape = (*pairs.shape, components)
    return {"dot": (shape, kind), "train_sq": (shape, kind), "query_sq": ((len(pairs), components), kind)}
