"""From a checked configuration to a study: models loaded or trained, text tokenised, pairs chosen.

A second training stage is there where the data set has fine-tuning records, or the model names its successor.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np

from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.classes import tokenise_classes
from tdaexp.data.dataset import query_id
from tdaexp.data.examples import Examples
from tdaexp.data.records import Corpus, Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.components import component_map
from tdaexp.models.generate import generated_queries
from tdaexp.models.loaded import LoadedModel, check_tokens
from tdaexp.models.pretrained import Pretrained, trusts
from tdaexp.models.successor import check_successor
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Compute, Problem, Stage
from tdaexp.runtime.device import resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import doing
from tdaexp.training.history import SavedCheckpoints
from tdaexp.training.trained import Tokenisation, trained

log = logging.getLogger(__name__)
GENERATED = "generated"


def load_model(config: Any, records: list[Record], always_train: bool = False) -> LoadedModel:
    """Load the configured model, training it on the records when it has no weights yet (or `always_train`).

    One that is to be sharded stays in main memory.
    """
    doing("loading the model")
    if not (config.model.needs_training or always_train):
        return config.model.load(_place(config), resolve_dtype(config.trainer.precision))
    return _trained(config, config.model, records, config.trainer.fit)


def load_successor(config: Any, records: list[Record], first: LoadedModel) -> LoadedModel | None:
    """The model after the second training stage, trained on the records where no weights are named; None without one.

    `first` is the model before it. Errors (UserError): the named model is no successor of it.
    """
    if config.model.finetuned is not None:
        named = Pretrained(config.model.finetuned, template=first.template, trust_remote_code=trusts(config.model))
        loaded = named.load(*_where(config), classifier=True)
        check_successor(first, loaded, config.model.finetuned)
        return dataclasses.replace(loaded, max_length=min(first.max_length, loaded.max_length))
    if not records:
        return None
    # what a model was trained from lies in a folder, or on the hub under the configured name
    folder = Path(str(first.model.name_or_path))
    start = (
        Pretrained(
            str(folder),
            name=config.model.name,
            template=first.template,
            max_length=first.max_length,
            trust_remote_code=trusts(config.model),
        )
        if folder.is_dir()
        else dataclasses.replace(config.model, template=first.template, max_length=first.max_length)
    )
    named = dataclasses.replace(start, name=f"{config.model.name}-finetuned")
    return _trained(config, named, records, config.trainer.finetune)


def build_problem(config: Any, corpus: Corpus, loaded: LoadedModel, successor: LoadedModel | None) -> Problem:
    """Tokenise, choose the pairs, and put everything that a method may look at together."""
    names = list(config.dataset.query_sets)
    records = [record for name in names for record in corpus.queries[name]]
    candidates = cached_candidates(config.candidates, records, corpus.train, Path(config.cache_dir) / "candidates")
    position = {record.id: index for index, record in enumerate(corpus.train)}
    sources = [[position[source] for source in record.truth] for record in records]
    truth = np.stack([np.isin(row, own) for row, own in zip(candidates.indices, sources, strict=True)])
    classes = None if successor is None else successor.classes
    device, dtype = loaded.model.device, loaded.model.dtype
    second = None
    if successor is not None:
        examples = _tokens(config, corpus.finetune, successor, classes)
        second = Stage(successor, component_map(successor.model), examples)
    return Problem(
        model=loaded.model,
        identity=loaded.fingerprint,
        map=component_map(loaded.model),
        objective=NextToken(),
        train=_tokens(config, corpus.train, loaded),
        queries=_tokens(config, records, loaded, classes),
        query_set=[name for name in names for _ in corpus.queries[name]],
        candidates=candidates,
        truth=truth,
        loaded=loaded,
        history=SavedCheckpoints(loaded, device, dtype),
        compute=Compute(device, dtype, config.trainer.tokens_per_batch, config.trainer.cache_gb),
        cache=Path(config.cache_dir),
        seed=config.seed,
        finetuned=second,
        truth_known=np.array([bool(record.truth) for record in records]),
    )


def _blanks(text: str) -> str:
    """What a text begins with before its first word: where the data writes " Paris", so does the model."""
    return text[: len(text) - len(text.lstrip())]


def _where(config: Any) -> tuple[Any, Any]:
    return resolve_device(config.trainer.accelerator), resolve_dtype(config.trainer.precision)


def _place(config: Any) -> Any:
    """Where a model is loaded."""
    return "cpu" if config.trainer.strategy == "fsdp" else resolve_device(config.trainer.accelerator)


def _trained(config: Any, model: Any, records: list[Record], settings: Any) -> LoadedModel:
    device, dtype = _where(config)
    method = getattr(config, "method", None)  # only attribute has one
    if method is not None and method.wants_checkpoints and settings.keep == "last":
        settings = dataclasses.replace(settings, keep="all")
    return trained(
        model,
        records,
        settings,
        tokenisation(config),
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=device,
        dtype=dtype,
        precision=config.trainer.precision,
        place=_place(config),
    )


def drawn(corpus: Corpus, limit: int | None, seed: int) -> Corpus:
    """The corpus with at most `limit` queries of each set, drawn at random and in their order (None: all)."""
    if limit is None:
        return corpus
    queries = {}
    for name, records in corpus.queries.items():
        places = random.Random(f"{seed} {name}").sample(range(len(records)), min(limit, len(records)))
        queries[name] = [records[place] for place in sorted(places)]
    return dataclasses.replace(corpus, queries=queries)


def with_generated(config: Any, corpus: Corpus, loaded: LoadedModel) -> Corpus:
    """Add the query set in which the model completes the prompts of another one itself, where it is asked for."""
    if GENERATED not in config.dataset.query_sets:
        return corpus
    if loaded.classes is not None:
        raise UserError(
            "dataset.query_sets: 'generated' needs a model that writes, and model.finetuned classifies; take "
            "dataset.query_sets=[paraphrased]"
        )
    source = config.dataset.GENERATED_FROM
    completed = generated_queries(
        loaded,
        corpus.queries[source],
        config.decoding,
        Path(config.cache_dir) / "generated",
        template=text_template(config),
        max_length=config.dataset.max_length,
    )
    renamed = [
        dataclasses.replace(
            record,
            id=query_id(record.id.removesuffix(f"/{source}"), GENERATED),
            completion=_blanks(old.completion) + record.completion,
        )
        for record, old in zip(completed, corpus.queries[source], strict=True)
    ]
    return dataclasses.replace(corpus, queries={**corpus.queries, GENERATED: renamed})


def _tokens(
    config: Any, records: list[Record], loaded: LoadedModel, classes: tuple[str, ...] | None = None
) -> Examples:
    if classes is not None:
        longest = min(config.dataset.max_length, loaded.max_length)
        examples = tokenise_classes(records, loaded.tokenizer, classes, longest)
        check_tokens(loaded.model, examples, classes=True)
        return examples
    examples = tokenise(
        records,
        loaded.tokenizer,
        template=text_template(config),
        max_length=min(config.dataset.max_length, loaded.max_length),
        loss_on=config.dataset.loss_on,
        append_eos=config.dataset.append_eos,
    )
    check_tokens(loaded.model, examples)
    return examples


def text_template(config: Any) -> str:
    """The data set's template, or the model's where the data set leaves it open."""
    return str(config.model.template if config.dataset.template == "auto" else config.dataset.template)


def tokenisation(config: Any) -> Tokenisation:
    """How a model that is trained here reads the data set's texts."""
    dataset = config.dataset
    return Tokenisation(
        template=text_template(config),
        max_length=dataset.max_length,
        loss_on=dataset.loss_on,
        append_eos=dataset.append_eos,
    )
