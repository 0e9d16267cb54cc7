"""What `import tdaexp` offers: the commands' engine on a model and data that are in memory, as plain functions.

A call gives the values that the command gives on the same model and data, shares its cache, and leaves the program
that calls it as it was (`runtime.untouched`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tdaexp.app.answer import Answer, SelfInfluence, load
from tdaexp.app.call import configured
from tdaexp.app.config import AttributeConfig
from tdaexp.app.stages.answering import Answer as Kept
from tdaexp.app.stages.answering import answered, check_sources
from tdaexp.app.work import seed as seed_generators
from tdaexp.building.given import module_problem, text_builder, text_keys
from tdaexp.data.records import Corpus
from tdaexp.gradients.capture import frozen
from tdaexp.methods.base import Method
from tdaexp.models.wrapped import compiled_from, language_model
from tdaexp.problem import Problem
from tdaexp.runtime.cache import at_work
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.device import PRECISIONS
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import plain_memory_errors
from tdaexp.runtime.untouched import untouched

__all__ = ["Answer", "SelfInfluence", "attribute", "load", "self_influence"]
log = logging.getLogger(__name__)
IN_MEMORY = 1 << 30
"""Bytes up to which an answer is read at once; of a larger one what lies in the cache is read when it is asked for."""
CHANGED_BY_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
Loss = Callable[[nn.Module, Any], Tensor]


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
    seed: int = 0,
    cache: str | Path = "cache",
    dataset: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
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
        seed: of all that is drawn.
        cache: folder for what other calls and the commands can use again (`cache_dir`).
        dataset: further keys of `conf/dataset/text.yaml`, e.g. `template`, `max_length`, `prompt_column`.
        trainer: keys of `conf/trainer/default.yaml`, e.g. `cache_gb`, `tokens_per_batch`.
        settings: keys of the method, and `budget`.

    Raises:
        UserError: a mistake in what was given, in one line.
    """
    given = _Given("tdaexp.attribute", model, train, queries, tokenizer, loss, collate, name, dataset or {})
    keys = {f"trainer.{key}": value for key, value in (trainer or {}).items()}
    with given.opened(method, settings, {"candidates": candidates}, {**keys, "seed": seed, "cache_dir": cache}):
        return Answer(given.answer(), given.values)


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
    given = _Given("tdaexp.self_influence", model, train, None, tokenizer, loss, collate, name, dataset or {})
    keys = {f"trainer.{key}": value for key, value in (trainer or {}).items()}
    keys |= {"seed": seed, "cache_dir": cache, "self_influence": True, "dataset.query_sets": []}
    with given.opened(method, settings, {"candidates": "all"}, keys):
        return SelfInfluence(given.answer(), given.values)


@dataclass
class _Given:
    """What a call was given: from it the configuration and the problem."""

    caller: str
    model: nn.Module
    train: Any
    queries: Any
    tokenizer: Any
    loss: Loss | None
    collate: Callable[[list[Any]], Any] | None
    name: str
    dataset: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.model = language_model(self.model) if self.loss is None else compiled_from(self.model)
        if self.loss is None and not isinstance(self.model, PreTrainedModel):
            raise UserError(
                f"loss: is missing, and a {type(self.model).__name__} is no language model of transformers; give "
                "loss=FUNCTION, which takes the model and a batch and returns one number for each item of it"
            )
        if self.loss is not None and (self.dataset or self.tokenizer is not None):
            raise UserError("loss: goes with items of any kind; leave tokenizer and dataset out")

    @contextlib.contextmanager
    def opened(
        self, method: str | Method, settings: Mapping[str, Any], groups: dict[str, str], keys: dict[str, Any]
    ) -> Iterator[None]:
        """Checked, seeded, and at work with the cache; the program is left as it was, after an error too."""
        keys["trainer.precision"] = _precision(self.model)
        if self.loss is None:
            groups, keys = {**groups, "dataset": "text"}, {**text_keys(self.train, self.queries, self.dataset), **keys}
        with untouched(), plain_memory_errors(), _as_it_was(self.model):
            self.config, self.values = configured(self.caller, method, settings, groups, keys)
            _check(self.config)
            seed_generators(self.config.seed, self.config.trainer.threads)
            with at_work(Path(self.config.cache_dir)):
                self.clock = Clock()
                yield

    def answer(self) -> Kept:
        """The method's answer, in memory where it is not large."""
        problem, corpus = self.problem()
        found = answered(self.config, problem, corpus, self.clock)
        found.describe(self.config.method, self.values)
        for store in (found.store, found.itself):
            if store is not None and store.nbytes <= IN_MEMORY:
                store.load()
        return found

    def problem(self) -> tuple[Problem, Corpus | None]:
        """The problem, as the commands build it, and its texts."""
        config, values = self.config, self.values
        if self.loss is not None:
            made = module_problem(config, self.model, self.train, self.queries, self.loss, self.collate)
            values["dataset"] = {"train": len(made.train), "queries": len(made.queries)}
            corpus = None
        else:
            assert isinstance(self.model, PreTrainedModel)
            builder = text_builder(config, self.model, self.tokenizer, self.name, self.train, self.queries)
            corpus = builder.corpus
            check_sources(config.method, corpus)
            made = builder.problem(self.clock)
        values["model"] = {"name": self.name, "class": type(self.model).__name__, "identity": made.identity}
        return made, corpus


def _precision(model: nn.Module) -> str:
    """The type that passes are run in: the model's own. Errors (UserError): one that is not offered."""
    first = next(model.parameters(), None)
    found = "float32" if first is None else str(first.dtype).removeprefix("torch.")
    if found not in PRECISIONS:
        raise UserError(
            f"model: its parameters are {found}; gradients are taken in {', '.join(PRECISIONS)}: take "
            "model.to(torch.bfloat16)"
        )
    return found


def _check(config: AttributeConfig) -> None:
    """Refuse what a call cannot give: several processes, a second stage, a recorded training."""
    if config.trainer.strategy != "single":
        raise UserError("trainer.strategy: a call runs in its own process; take attribute.py for several")
    for wanted, what in ((config.method.decomposes, "a recorded training"), (config.method.both_stages, "two stages")):
        if wanted:
            raise UserError(
                f"method={config.method.name}: needs {what}, which attribute.py makes; a call has one model"
            )


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, said where that changes what it computes, and put back."""
    changed = sorted(
        {type(one).__name__ for one in model.modules() if one.training and isinstance(one, CHANGED_BY_MODE)}
    )
    if changed:
        log.warning("the model is in training mode, with %s: it is explained in eval mode", ", ".join(changed))
    with frozen(model):
        yield
