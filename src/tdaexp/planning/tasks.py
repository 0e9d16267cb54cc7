"""From a configuration to the sizes of a recorded training: of a classification task, or of a language model."""

from __future__ import annotations

from typing import Any

from tdaexp.building.texts import drawn, text_template
from tdaexp.data.records import Corpus
from tdaexp.data.tensors import TensorCorpus
from tdaexp.data.tokenise import tokenise
from tdaexp.models.completion_task import CompletionTask, as_tensors
from tdaexp.models.discovery import discovered
from tdaexp.models.empty import random_model
from tdaexp.models.pretrained import FALLBACK_LENGTH
from tdaexp.planning.task_work import TaskWork
from tdaexp.planning.texts import read
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rehearsal import Rehearsal
from tdaexp.training.language import WATCHED

SOME = 32  # examples that a network is built with


class NotAtHand(UserError):
    """Something that a plan needs, and a run will fetch."""

    def __init__(self, what: str) -> None:
        super().__init__(f"plan: {what}")


def task_work(config: Any, rehearsal: Rehearsal) -> tuple[TaskWork, list[str]]:
    """A classification task's sizes, and what had to be assumed."""
    dataset = config.dataset
    corpus = dataset.corpus() if dataset.at_hand else dataset.blank()
    assumed = [] if dataset.at_hand else ["images of the usual size; the data is not at hand"]
    few = TensorCorpus(corpus.train.select(range(SOME)[: len(corpus.train)]), corpus.test, corpus.classes)
    module = config.model.module(few).eval()  # frozen averages of a batch norm are taken over the examples
    parts = {"train": corpus.train, "test": corpus.test}
    limit = dataset.query_limit or len(corpus.train) + len(corpus.test)
    queries = sum(min(limit, len(parts[name])) for name in dataset.query_sets)
    work = TaskWork(
        module, rehearsal, discovered(module), corpus.train, queries, corpus.classes, config.trainer.fit,
        config.candidates, config.trainer.tokens_per_batch, config.trainer.cache_gb,
    )  # fmt: skip
    return work, assumed


def recorded_work(config: Any, corpus: Corpus | None, rehearsal: Rehearsal) -> TaskWork:
    """A language model's recorded training, as a network of random weights on the records themselves.

    Errors: `NotAtHand`, of data or a tokenizer.
    """
    dataset = config.dataset
    if corpus is None and not dataset.at_hand:
        raise NotAtHand("of a recorded training the data itself is needed, which is not on this disk; give its files, "
                        "or leave plan=true out")  # fmt: skip
    corpus = corpus or drawn(read(dataset), dataset, config.seed)
    shape, tokenizer = config.model.planned([record.text for record in corpus.train])
    if tokenizer is None:
        raise NotAtHand("of a recorded training the tokenizer is needed, which is not on this disk; give "
                        "model.pretrained=FOLDER, or leave plan=true out")  # fmt: skip
    asked = [one for name, records in corpus.queries.items() if name in dataset.query_sets for one in records]
    longest = min(dataset.max_length, getattr(shape, "max_position_embeddings", None) or FALLBACK_LENGTH)
    settings = {"template": text_template(config), "append_eos": dataset.append_eos, "loss_on": dataset.loss_on}
    settings["turns"] = dataset.turns
    examples = tokenise([*corpus.train, *asked], tokenizer, max_length=longest, **settings)
    tensors = as_tensors(examples, max(example.length for example in examples))
    module = CompletionTask(random_model(shape))
    train = tensors.select(range(len(corpus.train)))
    return TaskWork(module, rehearsal, module.components(), train, len(asked), 2, config.trainer.fit, watched=WATCHED)
