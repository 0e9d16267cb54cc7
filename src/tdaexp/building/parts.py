"""What problems of every kind are put together from."""

from __future__ import annotations

import logging

import numpy as np
import torch

from tdaexp.building.settings import Trainer
from tdaexp.data.best import Best
from tdaexp.data.candidates import BM25, All, Candidates, Sample, top
from tdaexp.data.unknown_sources import Auto
from tdaexp.problem import Compute
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError

log = logging.getLogger(__name__)


def compute_of(trainer: Trainer, dtype: torch.dtype | None = None) -> Compute:
    """How the trainer's settings say that passes are run; `dtype` in place of its precision."""
    device = resolve_device(trainer.accelerator)
    return Compute(device, dtype or resolve_dtype(trainer.precision), trainer.tokens_per_batch, trainer.cache_gb)


def alike(order: np.ndarray, queries: int) -> Candidates:
    """The same candidates for each query, chosen without a look at words."""
    indices = np.tile(order, (queries, 1))
    return Candidates(indices, np.full(indices.shape, np.nan))


def chosen_candidates(selector: object, queries: int, train: int) -> Candidates:
    """Every training example for each query, or a random sample of them, the same for all queries; None: no pair.

    Lexical candidates need words: the default, `candidates=auto`, stands for all, and so does `bm25`; `best` are no
    pairs before they are found. Errors (UserError): others.
    """
    if selector is None or isinstance(selector, Best):
        return alike(np.arange(0), queries)
    if isinstance(selector, Sample):
        order = top(np.random.default_rng(selector.seed).random(train), selector.size(range(train)))  # type: ignore[arg-type]
    elif isinstance(selector, (All, Auto)) or type(selector) is BM25:
        order = np.arange(train)
    else:
        kind = type(selector).__name__.lower()
        raise UserError(f"candidates={kind}: reads texts; of a classification task choose candidates=all or =sample")
    log.info("candidates: %d of the %d training examples for each query", len(order), train)
    return alike(order, queries)
