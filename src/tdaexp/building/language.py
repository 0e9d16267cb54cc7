"""From a checked configuration to a problem of a language model: its texts, pairs of them, and both training stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from tdaexp.building.corpora import corpus_of, trained_on
from tdaexp.building.covered import checked_map
from tdaexp.building.parts import compute_of
from tdaexp.building.settings import Described
from tdaexp.building.texts import drawn, load_model, load_sharded, load_successor, text_template, tokenised
from tdaexp.data.best import Best
from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.candidates import Candidates
from tdaexp.data.dataset import GENERATED, query_id
from tdaexp.data.found import Found, texts_by_id
from tdaexp.data.pieces import of_pieces
from tdaexp.data.records import Corpus, Record
from tdaexp.data.unknown_sources import settled, tell
from tdaexp.models.generate import generated_queries
from tdaexp.models.loaded import LoadedModel
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem, Stage, Wanted
from tdaexp.runtime import ranks
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.training.history import SavedCheckpoints


@dataclass(frozen=True)
class Texts:
    """Builds the problem of a language model that is explained by its training texts."""

    config: Described

    @cached_property
    def corpus(self) -> Corpus:
        """All records, with at most `query_limit` queries of each set."""
        return drawn(corpus_of(self.config), self.config.dataset, self.config.seed)

    def problem(self, clock: Clock) -> Problem:
        """The models before and after the second stage, what the last one completes, and the pairs."""
        config, corpus = self.config, self.corpus
        if config.trainer.strategy == "fsdp":
            loaded, successor = load_sharded(config, corpus), None
        else:
            with ranks.first_alone():
                loaded = load_model(config, corpus.train)
                successor = load_successor(config, corpus.finetune, loaded)
        clock.stop("model")
        corpus = with_generated(config, corpus, successor or loaded)
        clock.stop("queries")
        with ranks.first_alone():
            problem = build_problem(config, corpus, loaded, successor)
            clock.stop("candidates")
        return problem


def build_problem(config: Described, corpus: Corpus, loaded: LoadedModel, successor: LoadedModel | None) -> Problem:
    """Tokenise, choose the pairs, and put everything that a method may look at together."""
    names, records = asked_records(config, corpus)
    classes = (successor or loaded).classes
    trained = trained_on(config, corpus.train, loaded)
    train, queries = trained.examples, tokenised(config, records, loaded, classes, trained_on=False)
    if isinstance(config.candidates, Found):  # which names pieces, where texts were cut
        candidates = config.candidates.pairs(texts_by_id(queries), texts_by_id(train))
    else:
        candidates = of_pieces(chosen(config, records, corpus.train), trained.documents)
    own = [trained.of(record.truth) for record in records]
    second = None
    if successor is not None:
        examples = tokenised(config, corpus.finetune, successor, classes)
        left = SavedCheckpoints(successor, successor.model.device, successor.model.dtype, "trainer.finetune")
        second = Stage(successor, checked_map(successor), examples, left)
    compute = replace(compute_of(config.trainer), device=loaded.model.device, dtype=loaded.model.dtype)
    return Problem(
        model=loaded.model,
        identity=loaded.fingerprint,
        map=checked_map(loaded),
        objective=NextToken(),
        train=train,
        queries=queries,
        query_set=names,
        candidates=candidates,
        truth=np.array(
            [np.isin(row, places) for row, places in zip(candidates.indices, own, strict=True)], dtype=bool
        ).reshape(candidates.indices.shape),
        loaded=loaded,
        history=SavedCheckpoints(loaded, compute.device, compute.dtype),
        compute=compute,
        cache=Path(config.cache_dir),
        seed=config.seed,
        finetuned=second,
        truth_known=np.array([bool(record.truth) for record in records]),
        belongs=trained.belongs,
        wanted=Wanted(config.candidates, own) if isinstance(config.candidates, Best) else None,
    )


def asked_records(config: Described, corpus: Corpus) -> tuple[list[str], list[Record]]:
    """The query set of every query, and the queries, those of one set after those of another."""
    sets = config.dataset.query_sets
    records = [record for name in sets for record in corpus.queries[name]]
    return [name for name in sets for _ in corpus.queries[name]], records


def chosen(config: Described, queries: list[Record], train: list[Record]) -> Candidates:
    """The configured candidates of every query, kept in the cache; none where they are to be found.

    Those that another run found are read from there.
    """
    if isinstance(config.candidates, (Best, Found)):
        return config.candidates.select(queries, train)
    selector = settled(config.candidates, queries)
    tell(config.candidates, queries, len(train))
    return cached_candidates(selector, queries, train, Path(config.cache_dir) / "candidates")


def with_generated(config: Described, corpus: Corpus, loaded: LoadedModel) -> Corpus:
    """Add the query set in which the model completes the prompts of another one itself, where it is asked for."""
    if GENERATED not in config.dataset.query_sets:
        return corpus
    if loaded.classes is not None:
        raise UserError(
            "dataset.query_sets: 'generated' needs a model that writes, and this one classifies; take "
            "dataset.query_sets=[paraphrased]"
        )
    source = config.dataset.generated_from
    completed = generated_queries(
        loaded,
        corpus.queries[source],
        config.decoding,
        Path(config.cache_dir) / "generated",
        template=text_template(config),
        max_length=config.dataset.max_length,
    )
    renamed = [
        replace(as_generated(record, source), completion=_blanks(old.completion) + record.completion)
        for record, old in zip(completed, corpus.queries[source], strict=True)
    ]
    return replace(corpus, queries={**corpus.queries, GENERATED: renamed})


def as_generated(record: Record, source: str) -> Record:
    """A query of the set `source` as the one of `generated` that has its prompt."""
    return replace(record, id=query_id(record.id.removesuffix(f"/{source}"), GENERATED), rejected=None)


def _blanks(text: str) -> str:
    """What a text begins with before its first word: where the data writes " Paris", so does the model."""
    return text[: len(text) - len(text.lstrip())]
