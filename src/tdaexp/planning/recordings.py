"""From a configuration to the sizes of a recorded training: of a classification task, or of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdaexp.building.tasks import chosen_candidates
from tdaexp.building.texts import drawn, text_template
from tdaexp.costs.task_workload import TaskWorkload
from tdaexp.data.candidates import Sample
from tdaexp.data.records import Corpus
from tdaexp.data.tensors import TensorCorpus, TensorExamples
from tdaexp.data.tokenise import tokenise
from tdaexp.models.completion_task import CompletionTask, as_tensors
from tdaexp.models.discovery import discovered
from tdaexp.models.empty import random_model
from tdaexp.models.pretrained import FALLBACK_LENGTH
from tdaexp.models.task import task_components
from tdaexp.objectives.classes import Classes
from tdaexp.planning.rehearsed import Rehearsed, RehearsedHistory, without_numbers
from tdaexp.planning.workload import Prepared, read
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import DEVICE, Rehearsal, aside
from tdaexp.training.language import WATCHED

SOME = 32  # examples that a network is built with


class NotAtHand(UserError):
    """Something that a plan needs, and a run will fetch."""

    def __init__(self, what: str) -> None:
        super().__init__(f"plan: {what}")


def task_workload(config: Any) -> tuple[TaskWorkload, list[StageCost], list[str]]:
    """A classification task's recorded training."""
    dataset, fit = config.dataset, config.trainer.fit
    corpus = dataset.load() if dataset.at_hand else dataset.blank()
    assumed = [] if dataset.at_hand else ["images of the usual size; the data is not at hand"]
    few = TensorCorpus(corpus.train.select(range(SOME)[: len(corpus.train)]), corpus.test, corpus.classes)
    module = config.model.module(few).eval()  # frozen averages of a batch norm are taken over the examples
    parts = {"train": corpus.train, "test": corpus.test}
    limit = dataset.query_limit or len(corpus.train) + len(corpus.test)
    queries = sum(min(limit, len(parts[name])) for name in dataset.query_sets)
    selector = config.candidates  # as `preparation.tasks` takes it: words are what a task has none of
    work = TaskWorkload(
        module, task_components(module), corpus.train, queries, corpus.classes, fit,
        min(selector.b, len(corpus.train)) if isinstance(selector, Sample) else len(corpus.train),
        config.trainer.tokens_per_batch, config.trainer.cache_gb,
    )  # fmt: skip
    return work, [work.training()], assumed


def task_problem(config: Any, work: TaskWorkload, rehearsal: Rehearsal) -> Problem:
    """The problem of a classification task's sizes."""
    dataset, objective, train = config.dataset, Classes(), work.examples
    model = without_numbers(work.module, rehearsal)
    rehearsal.watch(model)
    batch = objective.batch(train, range(min(2, len(train)))).to(DEVICE)
    with aside():
        parts = discovered(model, lambda: objective.outputs(model, batch), len(batch.ids))
    queries = train.select(np.arange(work.queries) % len(train))
    candidates = chosen_candidates(config.candidates, work.queries, len(train))
    return Rehearsed(
        model=model,
        identity="model",
        map=parts,
        objective=objective,
        train=train,
        queries=TensorExamples([f"q{k}" for k in range(work.queries)], queries.inputs, queries.targets),
        query_set=[dataset.query_sets[0]] * work.queries,
        candidates=candidates,
        truth=np.ones(candidates.indices.shape, dtype=bool),
        compute=Compute(DEVICE, torch.float32, work.tokens_per_batch, work.cache_gb),
        cache=Path(),
        seed=config.seed,
        history=RehearsedHistory(model, work.fit.steps if work.fit.record else 1),
    )


def recorded_workload(config: Any, corpus: Corpus | None) -> Prepared:
    """A language model's recorded training, as a network of random weights on the records themselves.

    Errors: `NotAtHand`, of data or a tokenizer.
    """
    dataset = config.dataset
    if corpus is None and not dataset.at_hand:
        raise NotAtHand("of a recorded training the data itself is needed, which is not on this disk; give its files, "
                        "or leave plan=true out")  # fmt: skip
    corpus = corpus or drawn(read(dataset), dataset.query_limit, config.seed)
    shape, tokenizer = config.model.planned([record.text for record in corpus.train])
    if tokenizer is None:
        raise NotAtHand("of a recorded training the tokenizer is needed, which is not on this disk; give "
                        "model.pretrained=FOLDER, or leave plan=true out")  # fmt: skip
    asked = [one for name, records in corpus.queries.items() if name in dataset.query_sets for one in records]
    longest = min(dataset.max_length, getattr(shape, "max_position_embeddings", None) or FALLBACK_LENGTH)
    settings = {"template": text_template(config), "append_eos": dataset.append_eos, "loss_on": dataset.loss_on}
    examples = tokenise([*corpus.train, *asked], tokenizer, max_length=longest, **settings)
    tensors = as_tensors(examples, max(example.length for example in examples))
    module = CompletionTask(random_model(shape))
    train = tensors.select(range(len(corpus.train)))
    work = TaskWorkload(module, module.components(), train, len(asked), 2, config.trainer.fit, watched=WATCHED)
    return work, [work.training()], []
