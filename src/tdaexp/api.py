"""What `import tdaexp` offers: the commands' engine on a model and data that are in memory, as plain functions.

A call gives the values that the command gives on the same model and data, shares its cache, and leaves the program
that calls it as it was (`runtime.untouched`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tdaexp.app.answer import Answer, SelfInfluence, load
from tdaexp.app.given import Given, Loss
from tdaexp.methods.base import Method

__all__ = ["Answer", "SelfInfluence", "attribute", "load", "self_influence"]


def attribute(
    model: nn.Module,
    train: Any,
    queries: Any,
    method: str | Method = "ekfac",
    *,
    tokenizer: Any = None,
    loss: Loss | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    name: str = "given",
    candidates: str = "all",
    trust: bool | None = None,
    seed: int = 0,
    cache: str | Path = "cache",
    dataset: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    history: str | Path | None = None,
    **settings: Any,
) -> Answer:
    """How much each training row helped each query: positive = training on it made the query more likely.

    Of a language model of transformers `train` and `queries` are rows of text: a list of dicts, strings or (prompt,
    completion) pairs, a datasets.Dataset, a pandas frame, or a path. Of any other module give `loss(model, batch)`,
    which returns a number for each item, [B]; `train` and `queries` are then data sets with a length, which `collate`
    batches (as a DataLoader does), or DataLoaders that do not shuffle.

    Args:
        model: explained where it is and in its type, in eval mode; it is left as it was. Of a PeftModel or a compiled
            model it is the model within.
        train: what its answers are attributed to.
        queries: what it was asked, and answered; every one is explained, whatever the method's `queries` in its YAML.
        method: a name from `conf/method`, whose keys are `settings` (`damping=0.1`), or a `Method`.
        tokenizer: of a language model; that of the folder it was read from where none is given.
        loss: of a module that is no language model.
        collate: of a list of its items.
        name: of the model, for people.
        candidates: which training rows a query is scored with, a name from `conf/candidates`.
        trust: are the checks of the answer made that take passes? None: those that are cheap (`Answer.trust`).
        seed: of all that is drawn.
        cache: folder for what other calls and the commands can use again (`cache_dir`).
        dataset: further keys of `conf/dataset/text.yaml`, e.g. `template`, `max_length`, `prompt_column`.
        trainer: keys of `conf/trainer/default.yaml`, e.g. `cache_gb`, `tokens_per_batch`.
        history: folder in which `Record` left the module's training, for methods that read one.
        settings: keys of the method, and `budget`.

    Raises:
        UserError: a mistake in what was given, in one line.
    """
    given = Given(
        "tdaexp.attribute", model, train, queries, tokenizer, loss, collate, name, dataset or {}, trainer or {}, history
    )
    keys = {"seed": seed, "cache_dir": cache, "trust": trust}
    with given.opened(method, settings, {"candidates": candidates}, keys) as run:
        return Answer(run.answer(), run.values)


def self_influence(
    model: nn.Module,
    train: Any,
    method: str | Method = "ekfac",
    *,
    tokenizer: Any = None,
    loss: Loss | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    name: str = "given",
    seed: int = 0,
    cache: str | Path = "cache",
    dataset: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SelfInfluence:
    """What each training row does for itself: large for outliers, and for rows whose label is wrong.

    Arguments and errors as for `attribute`; of methods for which it has a meaning (`methods.base.Method.of_itself`).
    """
    given = Given(
        "tdaexp.self_influence", model, train, None, tokenizer, loss, collate, name, dataset or {}, trainer or {}
    )
    keys: dict[str, Any] = {"seed": seed, "cache_dir": cache, "self_influence": True, "dataset.query_sets": []}
    with given.opened(method, settings, {"candidates": "all"}, keys) as run:
        return SelfInfluence(run.answer(), run.values)
