"""From a configuration to the sizes that a plan is made from, and to the costs of what comes before a method."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch

from tdaexp.building.corpora import token_corpus
from tdaexp.building.texts import drawn, text_template
from tdaexp.data.best import Best
from tdaexp.data.dataset import GENERATED, as_query
from tdaexp.data.found import Found
from tdaexp.data.record_store import RecordStore
from tdaexp.data.records import HELD_OUT, Corpus, Record
from tdaexp.data.sizes import CHARACTERS_PER_TOKEN, COUNTED, Sizes, sizes_of
from tdaexp.data.token_records import TokenRecords
from tdaexp.data.unknown_sources import settled
from tdaexp.methods.explaind import Explaind
from tdaexp.models.empty import empty_model
from tdaexp.models.empty_adapter import put_empty_on
from tdaexp.models.pretrained import FALLBACK_LENGTH, Pretrained
from tdaexp.planning.rehearsed import on_device
from tdaexp.planning.stored import in_tokens, sizes_of_stored, sizes_of_tokens
from tdaexp.planning.text_work import TextWork
from tdaexp.runtime.device import resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.launch import CPU_PROCESSES
from tdaexp.runtime.rehearsal import Rehearsal
from tdaexp.training.checkpoint_list import expanded

NONE_HELD_OUT = "no record is held out (dataset.held_out), the data's queries stand for them"
Sets = dict[str, Sizes]


def text_work(config: Any, corpus: Corpus | None, rehearsal: Rehearsal) -> tuple[TextWork, list[str]]:
    """A language model's sizes, and what had to be assumed; `corpus` is its data where it has been read already."""
    dataset = config.dataset
    path = isinstance(config.method, Explaind)
    simulated = path and not config.trainer.fit.record
    if corpus is None and dataset.at_hand:
        corpus = _corpus(config, simulated)
    read_by_model = corpus is not None and config.model.needs_training  # whose tokenizer is made of them
    shape, tokenizer = config.model.planned([one.text for one in corpus.train] if corpus and read_by_model else [])
    longest = config.model.max_length if hasattr(config.model, "max_length") else config.model.context
    longest = longest or getattr(shape, "max_position_embeddings", None) or FALLBACK_LENGTH
    longest, assumed = min(longest, dataset.max_length), []
    if corpus is None:
        train, sets = _assumed(dataset, longest)
        finetune = train if config.method.needs_both_stages else None
        assumed.append(f"{len(train):,} training examples and the lengths of dataset.assumed; the data is not at hand")
        assumed += ["a second stage as large as the first"] if finetune else []
    else:
        corpus = corpus if simulated else drawn(corpus, dataset, config.seed)
        train, sets, finetune = _sizes(config, corpus, tokenizer, longest)
        if tokenizer is None:
            assumed.append(f"lengths from characters, {CHARACTERS_PER_TOKEN:g} a token: the tokenizer is not at hand")
        elif (
            len(corpus.train) > COUNTED
            and (dataset.chunk is None or isinstance(corpus.train, RecordStore))
            and not in_tokens(dataset)
        ):
            assumed.append(f"lengths of all training examples from {COUNTED:,} of them, half of these the longest")
    if getattr(config.model, "quantised", None):
        assumed.append("the base's matrices in full precision, of which nf4 takes about an eighth and int8 a quarter")
    names = [name for name in dataset.query_sets if not (path and name == GENERATED)]
    if GENERATED in names:
        sets[GENERATED] = sets[dataset.generated_from]
        assumed.append("completions that the model writes are as long as those of the data")
    checkpoints, more = _checkpoints(config)
    if simulated:
        names = [HELD_OUT] if HELD_OUT in sets else names or [dataset.generated_from]
        assumed += [*([] if HELD_OUT in sets else [NONE_HELD_OUT]), *more]
    chosen = [sets[name] for name in names]
    dtype = resolve_dtype(config.trainer.precision)
    model = put_empty_on(empty_model(shape, dtype, rehearsal.fake), config.model.planned_adapter(), rehearsal.fake)
    work = TextWork(
        on_device(model),
        rehearsal,
        train,
        Sizes.joined(chosen),
        _pairs(sum(map(len, chosen)), len(train), _candidates(config, corpus, names, len(train))),
        dtype,
        config.trainer.tokens_per_batch,
        config.trainer.cache_gb,
        [len(one) for one in chosen],
        finetune,
        checkpoints,
        config.trainer.fit.batch_size,
        processes(config.trainer) if config.trainer.strategy == "fsdp" else 1,
        sets[dataset.generated_from] if GENERATED in names else None,
        config.candidates if isinstance(config.candidates, Best) else None,
    )
    return work, assumed


def processes(trainer: Any) -> int:
    """How many processes the trainer's settings mean."""
    cuda = trainer.accelerator == "cuda" or (trainer.accelerator == "auto" and torch.cuda.is_available())
    devices = trainer.devices or (torch.cuda.device_count() if cuda else CPU_PROCESSES)
    return int(max(1, devices) * trainer.nodes)


def _checkpoints(config: Any) -> tuple[int, list[str]]:
    """How many checkpoints there are or will be, and what had to be assumed of them."""
    if isinstance(config.model, Pretrained):
        found = sum(len(expanded(entry)) for entry in config.model.checkpoints)
        return max(1, found), [] if found else ["model.checkpoints names none; these are the costs of one"]
    fit = config.trainer.fit
    return max(1, fit.steps // fit.checkpoint_every), []


def _corpus(config: Any, simulated: bool) -> Corpus:
    """The data of a plan; of a `simulated` training its questions are the records that are held out."""
    if simulated:
        return _read_held_out(config.dataset)
    return token_corpus(config) if in_tokens(config.dataset) else read(config.dataset)


def read(dataset: Any) -> Corpus:
    """The data, but nothing that a model would have to write."""
    if dataset.paraphrase is None:
        found: Corpus = dataset.load()
        return found
    train = dataset.train_records()
    asked = [as_query(record, record) for record in train]  # in other words, which are not known yet
    return Corpus(train, {dataset.generated_from: asked}, dataset.finetune_records())


def _read_held_out(dataset: Any) -> Corpus:
    """The data with the records that are held out as its queries; with its own queries where there are none."""
    held_out = dataset.held_out_records()
    return Corpus(dataset.train_records(), {HELD_OUT: held_out}) if held_out else read(dataset)


def _assumed(dataset: Any, longest: int) -> tuple[Sizes, Sets]:
    stated = dataset.assumed
    if stated is None:
        raise UserError("dataset.assumed: the data is not on this disk; give its files, or state its sizes for a plan")
    count = min(stated.train, getattr(dataset, "limit", None) or stated.train)
    asked = min(stated.queries, dataset.query_limit or stated.queries)
    names = {*dataset.query_sets, dataset.generated_from}
    return stated.sizes(count, longest), {name: stated.sizes(asked, longest) for name in names}


def _sizes(config: Any, corpus: Corpus, tokenizer: Any, longest: int) -> tuple[Sizes, Sets, Sizes | None]:
    dataset = config.dataset
    settings = {"template": text_template(config), "append_eos": dataset.append_eos, "turns": dataset.turns}

    def sized(records: list[Record], chunk: int | None = None) -> Sizes:
        return sizes_of(records, tokenizer, max_length=longest, loss_on=dataset.loss_on, chunk=chunk, **settings)

    finetune = sized(corpus.finetune, dataset.chunk) if corpus.finetune else None
    sets = {name: sized(records) for name, records in corpus.queries.items()}
    train = partial(sized, chunk=dataset.chunk)
    if isinstance(corpus.train, RecordStore):
        return sizes_of_stored(corpus.train, train), sets, finetune
    if isinstance(corpus.train, TokenRecords):
        return sizes_of_tokens(corpus.train, tokenizer, longest, dataset.chunk), sets, finetune
    return train(corpus.train), sets, finetune


def _candidates(config: Any, corpus: Corpus | None, names: list[str], train: int) -> int:
    """How many of the training examples a query gets, where long texts may be several of them."""
    selector, records = config.candidates, train
    if corpus is not None:
        records, own = len(corpus.train), config.dataset.generated_from
        if not config.method.decomposes:  # which looks at no pair
            asked = [one for name in names for one in corpus.queries[own if name == GENERATED else name]]
            selector = settled(selector, asked)
    if isinstance(selector, Found):  # which has pieces, where texts are cut
        return selector.size(range(train))
    return min(train, math.ceil(int(selector.size(range(records))) * train / records))


def _pairs(queries: int, train: int, count: int) -> np.ndarray:
    """Candidates [Q, C]: each query's own source, and others at random."""
    if count >= train:
        return np.tile(np.arange(train), (queries, 1))
    others = np.random.default_rng(0).integers(0, train, (queries, count))
    others[:, 0] = np.arange(queries) % train
    return others
