"""From a checked configuration to the problem of a list of checkpoints."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from tdaexp.building.parts import chosen_candidates, compute_of
from tdaexp.building.settings import Named
from tdaexp.building.texts import check_simple, load_model, tokenisation
from tdaexp.data.examples import Examples
from tdaexp.data.groups import groups_of
from tdaexp.data.records import HELD_OUT, Corpus, Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.components import component_map
from tdaexp.models.hub import load_skeleton, load_tokenizer
from tdaexp.models.pretrained import Pretrained, model_length
from tdaexp.models.source import locate
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import fingerprint
from tdaexp.training.checkpoint_list import snapshots
from tdaexp.training.history import ListedCheckpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """Builds the problem of a list of checkpoints: those that the model names, or that its own training leaves."""

    config: Named

    @cached_property
    def corpus(self) -> Corpus:
        """The training records and, as queries, those that are held out.

        Errors (UserError): no checkpoints will be there, no held-out records.
        """
        config = self.config
        if config.trainer.precision == "bfloat16":
            raise UserError("trainer.precision=bfloat16: rounds away what one update changes; use float32 or float64")
        _check_kept(config)
        train, held_out = config.dataset.train_records(), config.dataset.held_out_records()
        if not held_out:
            raise UserError(
                "dataset.held_out: simulated updates are judged by the loss of held-out records, of which there are "
                "none; set e.g. dataset.held_out=64 (dataset=text or multilingual)"
            )
        corpus = Corpus(train, {HELD_OUT: held_out}, [])
        check_simple(config, corpus, "a list of checkpoints")
        return corpus

    def problem(self, clock: Clock) -> Problem:
        """The checkpoints with batches and held-out text; no pair is a candidate.

        The problem's model is their architecture without weights: each is loaded when its turn comes. Errors
        (UserError): checkpoints that do not belong together.
        """
        config, train, held_out = self.config, self.corpus.train, self.corpus.queries[HELD_OUT]
        with ranks.first_alone():
            found = snapshots(*_listed(config, train))
        log.info("checkpoints: %d, steps %d to %d", len(found), found[0].step, found[-1].step)
        first = found[0].model
        model = load_skeleton(locate(first.pretrained, first.revision, "model.checkpoints"), first.trust_remote_code)
        candidates = chosen_candidates(None, len(held_out), len(train))
        problem = Problem(
            model=model,
            identity=fingerprint([one.identity for one in found]),
            map=component_map(model).complete(),
            objective=NextToken(),
            train=_tokens(config, first, model, train),
            queries=_tokens(config, first, model, held_out),
            query_set=[HELD_OUT] * len(held_out),
            candidates=candidates,
            truth=np.zeros(candidates.indices.shape, bool),
            truth_known=np.zeros(len(held_out), bool),
            compute=compute_of(config.trainer),
            cache=Path(config.cache_dir),
            seed=config.seed,
            history=ListedCheckpoints(found, groups_of(train), groups_of(held_out), config.trainer.fit),
        )
        clock.stop("model")
        return problem


def _check_kept(config: Named) -> None:
    """Refuse a model that names no checkpoints, and a training that will leave none with the optimiser's state."""
    if isinstance(config.model, Pretrained):
        if not config.model.checkpoints:
            raise UserError(
                f"model.checkpoints: {config.model.name} names none; list folders or revisions, oldest first "
                "(model.checkpoints=[step-1000,step-2000])"
            )
    elif config.trainer.fit.keep != "state":
        raise UserError(
            f"trainer.fit.keep={config.trainer.fit.keep}: method=explaind needs the checkpoints of its training "
            "with the optimiser's state (trainer.fit.keep=state), or every update recorded (trainer.fit.record=1)"
        )


def _listed(config: Named, train: list[Record]) -> tuple[list[str], Pretrained]:
    """The entries of the list, and what they have in common."""
    model = config.model
    if isinstance(model, Pretrained):
        return model.checkpoints, model
    result = Path(str(load_model(config, train).model.name_or_path))
    folder = result.parent / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"trainer.fit.checkpoint_every={config.trainer.fit.checkpoint_every}: the training of "
            f"{config.trainer.fit.steps} steps left no checkpoint; lower it"
        )
    base = Pretrained(str(result), name=model.name, template=model.template, max_length=model.context)
    return [str(folder)], base


def _tokens(config: Named, first: Pretrained, model: PreTrainedModel, records: list[Record]) -> Examples:
    named, key = (first.tokenizer, "model.tokenizer") if first.tokenizer else (first.pretrained, "model.checkpoints")
    revision = None if first.tokenizer else first.revision
    tokenizer = load_tokenizer(locate(named, revision, key), first.trust_remote_code)
    longest = min(config.dataset.max_length, first.max_length or model_length(model.config, tokenizer))
    return tokenise(records, tokenizer, **asdict(replace(tokenisation(config), max_length=longest)))
