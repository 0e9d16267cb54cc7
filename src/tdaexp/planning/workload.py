"""From a configuration to the sizes that a plan is made from, and to the costs of what comes before a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.building.texts import GENERATED, drawn, text_template
from tdaexp.costs.task_workload import TaskWorkload
from tdaexp.costs.workload import RUNTIME_BYTES, Workload
from tdaexp.data.candidates import Candidates
from tdaexp.data.records import HELD_OUT, Corpus, Record
from tdaexp.data.sizes import CHARACTERS_PER_TOKEN, Sizes, sizes_of
from tdaexp.gradients.footprint import forward_bytes, training_bytes
from tdaexp.methods.explaind import Explaind
from tdaexp.models.empty import empty_model
from tdaexp.models.loaded import LoadedModel, head
from tdaexp.models.pretrained import FALLBACK_LENGTH, Pretrained
from tdaexp.objectives.tokens import NextToken
from tdaexp.planning.rehearsed import Rehearsed, RehearsedHistory, move
from tdaexp.problem import Compute, Problem, Stage
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.device import resolve_dtype
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.launch import CPU_PROCESSES
from tdaexp.runtime.rehearsal import DEVICE, Rehearsal
from tdaexp.training.checkpoint_list import expanded

ADAMW = 4  # numbers that training holds for each parameter: weight, gradient (counted with the pass), two moments
Sets = dict[str, Sizes]
Prepared = tuple[Workload | TaskWorkload, list[StageCost], list[str]]
"""A workload, the stages before the method, and what had to be assumed."""


def text_problem(config: Any, work: Workload, rehearsal: Rehearsal) -> Problem:
    """The problem of these sizes; its model is there for the rehearsal from here on."""
    model = work.model
    move(model)
    rehearsal.watch(head(model))
    truth = np.zeros(work.pairs.shape, dtype=bool)
    truth[:, 0] = True
    second = None
    if work.finetune is not None:
        loaded = LoadedModel(model, None, "finetuned", "", 0)  # type: ignore[arg-type]
        second = Stage(loaded, work.every, work.finetune.examples("f"))
    return Rehearsed(
        model=model,
        identity="model",
        map=work.every,
        objective=NextToken(),
        train=work.train.examples("t"),
        queries=work.queries.examples("q"),
        query_set=[str(number) for number, count in enumerate(work.query_sets) for _ in range(count)],
        candidates=Candidates(work.pairs, np.zeros(work.pairs.shape)),
        truth=truth,
        compute=Compute(DEVICE, work.dtype, work.tokens_per_batch, work.cache_gb),
        cache=Path(),
        seed=config.seed,
        history=RehearsedHistory(model, _checkpoints(config, True)[0]),
        finetuned=second,
    )


def text_workload(
    config: Any, corpus: Corpus | None, mode: FakeTensorMode | None = None
) -> tuple[Workload, list[StageCost], list[str]]:
    """A language model's sizes; `corpus` is its data where it has been read already."""
    dataset, mode = config.dataset, mode or FakeTensorMode()
    path = isinstance(config.method, Explaind)
    simulated = path and not config.trainer.fit.record
    if corpus is None and dataset.at_hand:
        corpus = _read_held_out(dataset) if simulated else read(dataset)
    records = [] if corpus is None else [record.text for record in corpus.train]
    shape, tokenizer = config.model.planned(records)
    longest = config.model.max_length if hasattr(config.model, "max_length") else config.model.context
    longest = longest or getattr(shape, "max_position_embeddings", None) or FALLBACK_LENGTH
    longest, assumed = min(longest, dataset.max_length), []
    if corpus is None:
        train, sets, finetune = _assumed(dataset, longest)
        assumed.append(f"{len(train):,} training examples and the lengths of dataset.assumed; the data is not at hand")
    else:
        corpus = corpus if simulated else drawn(corpus, dataset.query_limit, config.seed)
        train, sets, finetune = _sizes(config, corpus, tokenizer, longest)
        if tokenizer is None:
            assumed.append(f"lengths from characters, {CHARACTERS_PER_TOKEN:g} a token: the tokenizer is not at hand")
    names = [name for name in dataset.query_sets if not (path and name == GENERATED)]
    if GENERATED in names:
        sets[GENERATED] = sets[dataset.GENERATED_FROM]
        assumed.append("completions that the model writes are as long as those of the data")
    checkpoints = 0
    if simulated:
        names = [HELD_OUT] if HELD_OUT in sets else names or [dataset.GENERATED_FROM]
        checkpoints, more = _checkpoints(config, HELD_OUT in sets)
        assumed += more
    chosen = [sets[name] for name in names]
    dtype = resolve_dtype(config.trainer.precision)
    work = Workload(
        empty_model(shape, dtype, mode),
        mode,
        train,
        Sizes.joined(chosen),
        _pairs(sum(map(len, chosen)), len(train), config.candidates.size(range(len(train)))),
        dtype,
        config.trainer.tokens_per_batch,
        config.trainer.cache_gb,
        [len(one) for one in chosen],
        finetune,
        checkpoints,
        config.trainer.fit.batch_size,
        processes(config.trainer) if config.trainer.strategy == "fsdp" else 1,
    )
    before = _before(config, work, sets if GENERATED in names else {})
    return work, before, assumed


def processes(trainer: Any) -> int:
    """How many processes the trainer's settings mean."""
    cuda = trainer.accelerator == "cuda" or (trainer.accelerator == "auto" and torch.cuda.is_available())
    devices = trainer.devices or (torch.cuda.device_count() if cuda else CPU_PROCESSES)
    return int(max(1, devices) * trainer.nodes)


def _checkpoints(config: Any, held_out: bool) -> tuple[int, list[str]]:
    """How many checkpoints there are or will be, and what had to be assumed of them."""
    assumed = [] if held_out else ["no record is held out (dataset.held_out), the data's queries stand for them"]
    if isinstance(config.model, Pretrained):
        found = sum(len(expanded(entry)) for entry in config.model.checkpoints)
        assumed += [] if found else ["model.checkpoints names none; these are the costs of one"]
        return max(1, found), assumed
    fit = config.trainer.fit
    return max(1, fit.steps // fit.checkpoint_every), assumed


def read(dataset: Any) -> Corpus:
    """The data, but nothing that a model would have to write."""
    if dataset.paraphrase is None:
        found: Corpus = dataset.load()
        return found
    train = dataset.train_records()
    return Corpus(train, {dataset.GENERATED_FROM: train}, dataset.finetune_records())


def _read_held_out(dataset: Any) -> Corpus:
    """The data with the records that are held out as its queries; with its own queries where there are none."""
    held_out = dataset.held_out_records()
    return Corpus(dataset.train_records(), {HELD_OUT: held_out}) if held_out else read(dataset)


def _assumed(dataset: Any, longest: int) -> tuple[Sizes, Sets, Sizes | None]:
    stated = dataset.assumed
    if stated is None:
        raise UserError("dataset.assumed: the data is not on this disk; give its files, or state its sizes for a plan")
    count = min(stated.train, getattr(dataset, "limit", None) or stated.train)
    asked = min(stated.queries, dataset.query_limit or stated.queries)
    names = {*dataset.query_sets, dataset.GENERATED_FROM}
    return stated.sizes(count, longest), {name: stated.sizes(asked, longest) for name in names}, None


def _sizes(config: Any, corpus: Corpus, tokenizer: Any, longest: int) -> tuple[Sizes, Sets, Sizes | None]:
    dataset, settings = config.dataset, {"template": text_template(config), "append_eos": config.dataset.append_eos}

    def sized(records: list[Record]) -> Sizes:
        return sizes_of(records, tokenizer, max_length=longest, loss_on=dataset.loss_on, **settings)

    finetune = sized(corpus.finetune) if corpus.finetune else None
    return sized(corpus.train), {name: sized(records) for name, records in corpus.queries.items()}, finetune


def _pairs(queries: int, train: int, count: int) -> np.ndarray:
    """Candidates [Q, C]: each query's own source, and others at random."""
    if count >= train:
        return np.tile(np.arange(train), (queries, 1))
    others = np.random.default_rng(0).integers(0, train, (queries, count))
    others[:, 0] = np.arange(queries) % train
    return others


def _before(config: Any, work: Workload, sets: Sets) -> list[StageCost]:
    """What comes before the method: training where there are no weights yet, and the model's own completions.

    These are made where `sets` has them, from the sizes of the set that they complete.
    """
    stages = []
    if config.model.needs_training:
        stages.append(_training("training", config.trainer.fit, work, work.train))
    if work.finetune is not None and config.model.finetuned is None:
        stages.append(_training("fine-tuning", config.trainer.finetune, work, work.finetune))
    if work.shares > 1:
        whole = float(work.every.total * work.dtype.itemsize)
        note = "a process at a time holds the whole model in main memory"
        stages.append(StageCost("loading", device=work.weights, host=whole + RUNTIME_BYTES, note=note))
    if GENERATED in sets:
        prompts = sets[config.dataset.GENERATED_FROM]
        rows = min(config.decoding.batch_size, len(prompts))
        length = int(prompts.tokens.max()) + config.decoding.max_new_tokens
        stages.append(
            StageCost(
                "completions",
                forward=len(prompts),
                flop=work.forward_flop(prompts),
                device=work.weights + forward_bytes(work.model, rows, length, work.mode),
                host=RUNTIME_BYTES,
            )
        )
    return stages


def _training(name: str, fit: Any, work: Workload, sizes: Sizes) -> StageCost:
    batch = fit.batch_size if fit.batches == "stream" else min(fit.batch_size, len(sizes))
    runs = fit.steps * batch
    activations = training_bytes(work.model, batch, int(sizes.tokens.max()), work.mode)
    parameters = 4.0 * work.every.total
    return StageCost(
        name,
        forward=runs,
        backward=runs,
        flop=work.pass_flop(sizes) * runs / len(sizes),
        disk=parameters,
        device=(ADAMW - 1) * parameters + activations if fit.steps else parameters,
        host=parameters + RUNTIME_BYTES,
        note="once; other runs find the model in the cache",
    )
