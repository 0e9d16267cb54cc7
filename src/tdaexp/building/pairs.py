"""The pairs that a configuration asks about, for scores that another program wrote: no method is asked anything.

They are told without the model wherever that can be: of a classification task, of texts, and of the model's own
completions where candidates are chosen by prompts. Pieces of texts need its tokenizer, completions by which candidates
are chosen need the model itself: then the whole problem is built, the model trained or loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.building.language import Texts as Language
from tdaexp.building.language import as_generated, asked_records, chosen
from tdaexp.building.parts import chosen_candidates
from tdaexp.building.settings import Described
from tdaexp.building.tasks import build_problem, load_task, same_class
from tdaexp.data.best import Best
from tdaexp.data.candidates import Candidates
from tdaexp.data.dataset import GENERATED
from tdaexp.data.records import Corpus
from tdaexp.metrics.combining import check_candidates, mean_query
from tdaexp.problem import Problem
from tdaexp.report.texts import Passage, Texts, as_one, texts_of, texts_of_records
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.fingerprint import file_fingerprint
from tdaexp.selection.products_file import read_products
from tdaexp.training.task import asked_of, check_pair


def problem_of(config: Described) -> Problem:
    """The problem that a configuration describes, whatever method may look at it; models are loaded or trained.

    Errors (UserError): one half of a task with a language model or with text, and what no problem can be made of.
    """
    if check_pair(config.model, config.dataset):
        return build_problem(config, load_task(config), config.candidates)
    return Language(config).problem(Clock())


def pairs_of_products(file: Path, query_set: str | None) -> xr.Dataset:
    """The pairs of a products file, with its own ids and no scores; the study is that of every run on the file."""
    return _unscored(read_products(file, query_set), file_fingerprint(file))


def pairs_of(config: Described) -> tuple[xr.Dataset, Texts]:
    """The pairs of a configuration (queries, candidates, truth, lexical scores), as `attribute.py` has them, and texts.

    Scores are NaN. The attribute `study` is None where no model was looked at: then nothing is known of it.
    Errors (UserError): as of `problem_of`.
    """
    if isinstance(config.candidates, Best):
        raise UserError(
            "candidates=best: are pairs that a method finds, and scores of another program are about pairs that are "
            "named; take candidates=all, or the run that found them (runs=[FOLDER])"
        )
    if check_pair(config.model, config.dataset):
        return _of_task(config)
    corpus = Language(config).corpus
    told = _with_prompts(config, corpus)
    found, texts = _of_problem(problem_of(config), corpus) if told is None else _of_texts(config, told)
    combine = getattr(config.dataset, "combine", None)
    if combine is None:
        return found, texts
    sets, columns = found["query_set"].values.tolist(), np.unique(found["train"].values, return_inverse=True)[1]
    check_candidates(sets, columns.reshape(found["train"].shape))
    texts = as_one(texts, sets, found["query"].values.tolist(), combine)
    return _unscored(mean_query(found), found.attrs["study"]), texts


def _of_task(config: Described) -> tuple[xr.Dataset, Texts]:
    corpus = config.dataset.load()
    names, queries = asked_of(corpus, config.dataset.query_sets, config.dataset.query_limit)
    candidates = chosen_candidates(config.candidates, len(queries), len(corpus.train))
    truth = same_class(queries, corpus.train, candidates)
    known = np.ones(len(truth), dtype=bool)
    texts: Texts = {
        role: {one: Passage("", text) for one, text in zip(side.ids, side.texts, strict=True)}
        for role, side in (("query", queries), ("train", corpus.train))
    }
    return _built(names, queries.ids, corpus.train.ids, candidates, truth, known), texts


def _with_prompts(config: Described, corpus: Corpus) -> Corpus | None:
    """The records with the model's own completions left open; None where these, or its tokenizer, decide pairs."""
    if config.dataset.chunk is not None:
        return None
    if GENERATED not in config.dataset.query_sets:
        return corpus
    by_prompt = getattr(config.candidates, "field", None) == "prompt" and any(
        record.prompt.strip() for record in corpus.train
    )
    if not by_prompt:
        return None
    source = config.dataset.generated_from
    asked = [replace(as_generated(record, source), completion="") for record in corpus.queries[source]]
    return replace(corpus, queries={**corpus.queries, GENERATED: asked})


def _of_texts(config: Described, corpus: Corpus) -> tuple[xr.Dataset, Texts]:
    names, records = asked_records(config, corpus)
    candidates = chosen(config, records, corpus.train)
    ids = [record.id for record in corpus.train]
    train = _ids(ids, candidates)
    truth = np.array(
        [np.isin(row, list(record.truth)) for row, record in zip(train, records, strict=True)], dtype=bool
    ).reshape(train.shape)
    known = np.array([bool(record.truth) for record in records])
    found = _built(names, [record.id for record in records], ids, candidates, truth, known)
    return found, texts_of_records(records, corpus.train)


def _of_problem(problem: Problem, corpus: Corpus) -> tuple[xr.Dataset, Texts]:
    known = problem.truth_known
    sure = np.ones(len(problem.truth), bool) if known is None else known
    ids: list[str] = list(problem.train.ids)
    found = _built(problem.query_set, problem.queries.ids, ids, problem.candidates, problem.truth, sure)
    return _unscored(found, problem.study), texts_of(problem, corpus.train if problem.belongs else ())


def _ids(train: list[str], candidates: Candidates) -> np.ndarray:
    """Ids [Q, C] of the candidates, "" where there is none."""
    named: np.ndarray = np.array([*train, ""], dtype=object)[candidates.indices]
    return named


def _built(
    query_set: list[str],
    query: list[str],
    train: list[str],
    candidates: Candidates,
    truth: np.ndarray,
    known: np.ndarray,
) -> xr.Dataset:
    return influence.build(
        np.full(candidates.indices.shape, np.nan),
        query=query,
        query_set=query_set,
        train=_ids(train, candidates),
        truth=truth,
        truth_known=known,
        bm25=candidates.bm25,
        attrs={"study": None},
    )


def _unscored(found: xr.Dataset, study: str | None) -> xr.Dataset:
    """The pairs of a store alone."""
    nothing = np.full(found["train"].shape, np.nan)
    known = {"truth_known": ("query", influence.truth_known(found))}
    return influence.like(found, nothing, {"study": study}).assign(known)
