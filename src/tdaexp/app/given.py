"""A Python call at work: the commands' engine on what the call was given, in the caller's program."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tdaexp.app.call import configured
from tdaexp.app.config import AttributeConfig
from tdaexp.app.stages.answering import Answer, answered, check_sources
from tdaexp.app.work import seed as seed_generators
from tdaexp.building.given import module_problem, text_builder, text_keys
from tdaexp.building.own_recording import with_recording
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
from tdaexp.runtime.quiet import unheard_warnings
from tdaexp.runtime.untouched import untouched

log = logging.getLogger(__name__)
IN_MEMORY = 1 << 30
"""Bytes up to which an answer is read at once; of a larger one what lies in the cache is read when it is asked for."""
CHANGED_BY_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class Given:
    """What a call was given; `caller` is named in messages."""

    caller: str
    model: nn.Module
    train: Any
    queries: Any
    tokenizer: Any
    loss: Loss | None
    collate: Callable[[list[Any]], Any] | None
    name: str
    dataset: Mapping[str, Any]
    trainer: Mapping[str, Any]
    history: str | Path | None = None

    def __post_init__(self) -> None:
        self.model = language_model(self.model) if self.loss is None else compiled_from(self.model)
        if self.loss is None and not isinstance(self.model, PreTrainedModel):
            raise UserError(
                f"loss: is missing, and a {type(self.model).__name__} is no language model of transformers; give "
                "loss=FUNCTION, which takes the model and a batch and returns one number for each item of it"
            )
        if self.loss is not None and (self.dataset or self.tokenizer is not None):
            raise UserError("loss: goes with items of any kind; leave tokenizer and dataset out")
        if self.loss is None and self.history is not None:
            raise UserError(
                "history: is that of a module with a loss (loss=FUNCTION); a language model's checkpoints are found by "
                "the folder that it was read from"
            )

    @contextlib.contextmanager
    def opened(
        self, method: str | Method, settings: Mapping[str, Any], groups: dict[str, str], keys: dict[str, Any]
    ) -> Iterator[Run]:
        """The call checked, seeded, and at work with the cache; the program is left as it was, after an error too."""
        trainer = {**self.trainer, "precision": _precision(self.model, self.trainer.get("precision"))}
        keys = {**{f"trainer.{key}": value for key, value in trainer.items()}, **keys}
        if self.loss is None:
            groups, keys = {**groups, "dataset": "text"}, {**text_keys(self.train, self.queries, self.dataset), **keys}
        with untouched(), unheard_warnings(), plain_memory_errors(), _as_it_was(self.model):
            config, values = configured(self.caller, method, settings, groups, keys)
            _check(config, recorded=self.history is not None)
            seed_generators(config.seed, config.trainer.threads)
            with at_work(Path(config.cache_dir)):
                yield Run(self, config, values, Clock())


@dataclass(frozen=True)
class Run:
    """A call's configuration as objects and as values, and its clock."""

    given: Given
    config: AttributeConfig
    values: dict[str, Any]
    clock: Clock

    def answer(self) -> Answer:
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
        given, config, values = self.given, self.config, self.values
        if given.loss is not None:
            made = module_problem(config, given.model, given.train, given.queries, given.loss, given.collate)
            if given.history is not None:
                made = with_recording(made, Path(given.history), tensors=config.method.decomposes)
            values["dataset"] = {"train": len(made.train), "queries": len(made.queries)}
            corpus = None
        else:
            assert isinstance(given.model, PreTrainedModel)
            builder = text_builder(config, given.model, given.tokenizer, given.name, given.train, given.queries)
            corpus = builder.corpus
            check_sources(config.method, corpus)
            made = builder.problem(self.clock)
        values["model"] = {"name": given.name, "class": type(given.model).__name__, "identity": made.identity}
        return made, corpus


def _precision(model: nn.Module, asked: str | None) -> str:
    """The type that passes are run in: the model's own. Errors (UserError): one that is not offered, or another one
    that was `asked` for.
    """
    first = next(model.parameters(), None)
    found = "float32" if first is None else str(first.dtype).removeprefix("torch.")
    if found not in PRECISIONS:
        raise UserError(
            f"model: its parameters are {found}; gradients are taken in {', '.join(PRECISIONS)}: take "
            "model.to(torch.bfloat16)"
        )
    if asked not in (None, "auto", found):
        raise UserError(f"trainer.precision={asked}: the model is {found}, and explained as it is; convert it before")
    return found


def _check(config: AttributeConfig, recorded: bool) -> None:
    """Refuse what a call cannot give: several processes, a second stage, a recorded training where none is named."""
    if config.trainer.strategy != "single":
        raise UserError("trainer.strategy: a call runs in its own process; take attribute.py for several")
    method = config.method
    if method.decomposes and not recorded:
        raise UserError(f"method={method.name}: needs a recorded training; attribute.py makes one, and tdaexp.Record "
                        "records yours (history=FOLDER)")  # fmt: skip
    if method.needs_both_stages:
        raise UserError(f"method={method.name}: needs two stages, which attribute.py makes; a call has one model")


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
