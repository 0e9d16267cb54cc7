"""From a checked configuration to the recorded training of a language model, and to its study."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdaexp.building.texts import GENERATED, drawn, tokenisation
from tdaexp.data.records import Corpus
from tdaexp.paths.recorded_problem import TaskStudy
from tdaexp.runtime.device import resolve_device
from tdaexp.runtime.errors import UserError
from tdaexp.training.language import TrainedLanguage, trained_language

log = logging.getLogger(__name__)


def recorded_corpus(config: Any) -> Corpus:
    """The training records and the queries, of which a recorded model writes none itself.

    Errors (UserError): no query set beside the model's own completions, a second training stage.
    """
    corpus = drawn(config.dataset.load(), config.dataset.query_limit, config.seed)
    if corpus.finetune:
        raise UserError("trainer.fit.record: one stage of training can be recorded, this data has two")
    names = [name for name in config.dataset.query_sets if name != GENERATED]
    if not names:
        raise UserError(f"dataset.query_sets=[{GENERATED}]: what a recorded model writes itself cannot be asked about; "
                        "name another set, e.g. paraphrased")  # fmt: skip
    if len(names) < len(config.dataset.query_sets):
        log.info("queries: the set '%s' is left out of a recorded training", GENERATED)
    return replace(corpus, queries={name: corpus.queries[name] for name in names})


def load_recorded(config: Any, corpus: Corpus) -> TrainedLanguage:
    """Train and record the configured language model, or load it where it was trained before."""
    return trained_language(
        config.model,
        corpus.train,
        corpus.queries,
        config.trainer.fit,
        tokenisation(config),
        cache_dir=Path(config.cache_dir),
        seed=config.seed,
        device=resolve_device(config.trainer.accelerator),
    )


def build_recorded_study(config: Any, task: TrainedLanguage) -> TaskStudy:
    """The recorded training with all its queries, on the run's device."""
    device = resolve_device(config.trainer.accelerator)
    return TaskStudy(
        task.module.to(device),
        {name: tuple(members) for name, members in task.components.members.items()},
        task.corpus.train,
        task.corpus.test,
        list(task.query_set),
        task.trajectory,
        Path(config.cache_dir),
        identity=task.fingerprint,
        device=device,
    )
