"""Problems of a model and data that are in memory: by the way of a configuration, with other objects in its places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdaexp.building.language import Texts
from tdaexp.building.own import own_problem
from tdaexp.building.parts import chosen_candidates
from tdaexp.building.settings import Asked
from tdaexp.data.best import Best
from tdaexp.data.handed import Handed, labelled_rows, rows_of
from tdaexp.models.given import classifies, given
from tdaexp.problem import Problem, Wanted
from tdaexp.runtime.errors import UserError

NAMES = {"path": "train", "query_path": "queries"}
"""What rows in memory are called where a file has its path."""


def text_keys(train: Any, queries: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a text's configuration: `keys`, and the two paths, or what rows in memory are called."""
    own = {f"dataset.{key}": value for key, value in keys.items()}
    for key, data in zip(NAMES, (train, queries), strict=True):
        if key in keys:
            raise UserError(f"dataset.{key}: is handed over as {NAMES[key]}; leave it out")
        if data is None and key == "query_path":
            continue
        own[f"dataset.{key}"] = str(data) if isinstance(data, (str, Path)) else NAMES[key]
    if not _in_files(train, queries):
        own["dataset._target_"] = f"{Handed.__module__}.{Handed.__qualname__}"
    return own


def _in_files(*data: Any) -> bool:
    return all(isinstance(one, (str, Path)) for one in data if one is not None)


def text_builder(config: Any, model: PreTrainedModel, tokenizer: Any, name: str, train: Any, queries: Any) -> Texts:
    """Builds the problem of a language model in memory, on files or on rows in memory.

    Errors (UserError): no row, no tokenizer, and as of a configuration.
    """
    dataset = config.dataset
    if isinstance(dataset, Handed):
        read = labelled_rows if classifies(model) else rows_of
        dataset.train = read(train, "train")
        dataset.queries = [] if queries is None else read(queries, "queries")
    asked: Asked = replace(config, model=given(model, tokenizer, name))
    return Texts(asked)


def module_problem(
    config: Any,
    model: nn.Module,
    train: Any,
    queries: Any,
    loss: Callable[[nn.Module, Any], Tensor],
    collate: Callable[[list[Any]], Any] | None,
) -> Problem:
    """The problem of a module with a loss of somebody's own; `candidates` as for classifiers."""
    trainer = config.trainer
    made = own_problem(
        model,
        train,
        queries,
        loss=loss,
        collate=collate,
        cache=config.cache_dir,
        tokens_per_batch=trainer.tokens_per_batch,
        cache_gb=trainer.cache_gb,
        seed=config.seed,
    )
    candidates = chosen_candidates(config.candidates, len(made.queries), len(made.train))
    unknown = made.truth[:, :1].repeat(candidates.indices.shape[1], axis=1)
    nothing = [np.zeros(0, dtype=np.int64)] * len(made.queries)
    wanted = Wanted(config.candidates, nothing) if isinstance(config.candidates, Best) else None
    return replace(made, candidates=candidates, truth=unknown, wanted=wanted)
