"""From a checked configuration to the recipe by which its model can be trained again."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict
from typing import Any

from tdaexp.building.recorded import Recorded
from tdaexp.building.settings import Asked
from tdaexp.building.tasks import load_task
from tdaexp.building.texts import tokenisation
from tdaexp.data.tokenise import tokenise
from tdaexp.models.completion_task import CompletionTask
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.device import resolve_device
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.bank import Recipe
from tdaexp.training.language import Completions
from tdaexp.training.task import check_pair
from tdaexp.training.task_problem import Classification, Problem
from tdaexp.training.text_problem import Texts


def recipe_of(config: Asked) -> Recipe:
    """How the configured model was trained.

    Errors (UserError): it was not trained here, in two stages, in mixed precision, or on pieces of texts.
    """
    if config.trainer.precision != "float32":
        raise UserError(
            f"trainer.precision={config.trainer.precision}: models are trained again in float32; explain one that was"
        )
    if check_pair(config.model, config.dataset):
        return _of_task(config)
    model, dataset = config.model, config.dataset
    if not (model.needs_training or config.method.decomposes):
        raise UserError(
            f"model={model.name}: was not trained here, so nothing says how to train it again; judge a model that is "
            "(model=toy_gpt, or model.adapter=new)"
        )
    if dataset.chunk is not None:
        raise UserError(f"dataset.chunk={dataset.chunk}: models are trained again on whole texts; leave it out (null)")
    return _of_texts(config)


def _of_task(config: Asked) -> Recipe:
    task, model, device = load_task(config), config.model, resolve_device(config.trainer.accelerator)

    def start(seed: int | None) -> Problem:
        chosen = model if seed is None else dataclasses.replace(model, seed=seed)
        return Classification(chosen.build(task.corpus).to(device), task.corpus)

    return Recipe(
        identity=fingerprint(task.fingerprint, device.type),
        settings=config.trainer.fit,
        seed=config.seed,
        start=start,
        ids=task.corpus.train.ids,
        by=(recipe_of, type(model), Classification),
        classes=task.corpus.train.targets.numpy(),
    )


def _of_texts(config: Asked) -> Recipe:
    dataset, model, fit = config.dataset, config.model, config.trainer.fit
    if dataset.finetune_records():
        raise UserError("trainer.finetune: models of two training stages are not trained again; explain one stage")
    records, device = dataset.train_records(), resolve_device(config.trainer.accelerator)
    texts = [record.text for record in records]
    first = model.start(texts)
    how = dataclasses.replace(tokenisation(config), max_length=min(dataset.max_length, first.max_length))
    examples = tokenise(records, first.tokenizer, **asdict(how))
    recorded = Recorded(config).trained().corpus if config.method.decomposes else None
    pad = first.tokenizer.pad_token_id

    def start(seed: int | None) -> Problem:
        loaded = first if seed is None else _reseeded(model, seed).start(texts)
        network = copy.deepcopy(loaded.model).to(device)
        if recorded is not None:
            return Completions(CompletionTask(network), recorded)
        return Texts(network, examples, 0 if pad is None else int(pad))

    return Recipe(
        identity=fingerprint(first.fingerprint, examples.fingerprint(), fit.deciding(), config.seed, device.type),
        settings=fit,
        seed=config.seed,
        start=start,
        ids=examples.ids,
        by=(recipe_of, type(model), LoadedModel, Completions if recorded is not None else Texts),
        classes=None,
    )


def _reseeded(model: Any, seed: int) -> Any:
    """The model with another random start, as far as its start is random: of weights, or of a new adapter."""
    if hasattr(model, "seed"):
        return dataclasses.replace(model, seed=seed)
    return dataclasses.replace(model, lora=dataclasses.replace(model.lora, seed=seed))
