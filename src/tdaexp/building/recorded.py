"""From a checked configuration to the recorded training of a language model, and to its problem."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from tdaexp.building.settings import Named
from tdaexp.building.tasks import build_problem
from tdaexp.building.texts import check_simple, drawn, tokenisation
from tdaexp.data.dataset import GENERATED
from tdaexp.data.records import Corpus
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.device import resolve_device
from tdaexp.runtime.errors import UserError
from tdaexp.training.language import TrainedLanguage, trained_language

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorded:
    """Builds the problem of a language model whose training is recorded."""

    config: Named

    @cached_property
    def corpus(self) -> Corpus:
        """The training records and the queries, of which a recorded model writes none itself.

        Errors (UserError): no query set beside the model's own completions, a second training stage.
        """
        dataset = self.config.dataset
        corpus = drawn(dataset.load(), dataset, self.config.seed)
        check_simple(self.config, corpus, "a recorded training")
        if corpus.finetune:
            raise UserError("trainer.fit.record: one stage of training can be recorded, this data has two")
        names = [name for name in dataset.query_sets if name != GENERATED]
        if not names:
            raise UserError(f"dataset.query_sets=[{GENERATED}]: what a recorded model writes itself cannot be asked "
                            "about; name another set, e.g. paraphrased")  # fmt: skip
        if len(names) < len(dataset.query_sets):
            log.info("queries: the set '%s' is left out of a recorded training", GENERATED)
        return replace(corpus, queries={name: corpus.queries[name] for name in names})

    def trained(self) -> TrainedLanguage:
        """The model, trained and recorded now, or found where it was trained before."""
        config = self.config
        return trained_language(
            config.model,
            self.corpus.train,
            self.corpus.queries,
            config.trainer.fit,
            tokenisation(config),
            cache_dir=Path(config.cache_dir),
            seed=config.seed,
            device=resolve_device(config.trainer.accelerator),
        )

    def problem(self, clock: Clock) -> Problem:
        """The trained model, as a network of two classes, with its recording."""
        with ranks.first_alone():
            task = self.trained()
        clock.stop("model")
        return build_problem(self.config, task, None, torch.float32, task.components)
