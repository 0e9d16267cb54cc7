"""`python evaluate.py serve=true runs=[RUN]`: a local page that asks the index of a run's training examples."""

from __future__ import annotations

import glob
import json
import logging
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.app.check import Checker, places
from tdaexp.app.config import AttributeConfig, EvaluateConfig
from tdaexp.building.asking import Question
from tdaexp.building.build import builder_of
from tdaexp.building.language import Texts
from tdaexp.data.best import Best
from tdaexp.problem import Problem
from tdaexp.report.answer_files import as_json
from tdaexp.report.answers import questions
from tdaexp.report.asked_page import Asked, asked_page
from tdaexp.report.texts import Passage, texts_of
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.loopback import Loopback, Reply
from tdaexp.runtime.progress import doing
from tdaexp.runtime.reading import read_settings

log = logging.getLogger(__name__)
CONFIG = "config.yaml"
WAITING = "waiting for questions"


def serve(config: EvaluateConfig) -> dict[str, float]:
    """Serve until the run is asked to end; returns how many questions were asked.

    Errors (UserError): not one run, a method without an index, a task without texts, blocks that are missing, a port
    that is taken.
    """
    run = _run(config.runs)
    asked = _configured(run)
    with closing(Loopback(config.port)) as server:
        asker = Asker(run, asked, config.metric.top_k)
        log.info("serving the index of %s on %s for this machine alone, until Ctrl-C", run, server.url)
        doing(WAITING)
        count = server.serve(asker.reply)
    log.info("%d questions were asked", count)
    return {"serve/questions": float(count)}


class Asker:
    """What answers the page's forms: a run's model, its method and its index."""

    def __init__(self, run: Path, config: AttributeConfig, k: int) -> None:
        builder = builder_of(config)
        if not isinstance(builder, Texts):
            raise UserError("serve=true: is asked in words, and the run is not of a language model's texts")
        doing("reading the data")
        self.config, self.k = config, k
        self.problem = builder.problem(Clock()).after(config.stage)
        self.question = Question(config, self.problem)
        self.run, self.index = run, config.method.index(self.problem)
        self.check()
        first = builder.corpus.train[0].completion
        self.blanks = first[: len(first) - len(first.lstrip())]
        self.about = Asked(run.name, config.method.label, config.model.name, len(self.index.place), k, "", "")
        self.records = builder.corpus.train if self.problem.belongs else ()

    def check(self) -> None:
        """Refuse (UserError) an index with missing blocks: nobody who asks waits for a pass over the corpus."""
        if missing := self.index.missing():
            raise UserError(
                f"{self.run}: {len(missing)} of the {len(self.index.blocks)} blocks of its index are not in "
                f"{self.config.cache_dir}; build them first: attribute.py with the run's keys, "
                "candidates=best and shard=1/1"
            )

    def reply(self, path: str, fields: dict[str, str]) -> Reply:
        """The page, with an answer where a question was sent; the answer alone, as JSON, at /answer.json."""
        if path not in ("/", "/answer.json"):
            return Reply("there is nothing here", "text/plain", 404)
        plain = path == "/answer.json"
        prompt, completion = fields.get("prompt", ""), fields.get("completion", "")
        page = replace(self.about, prompt=prompt, completion=completion)
        if not fields:
            return Reply(asked_page(page)) if not plain else _as_json({"error": "send prompt and completion"}, 400)
        try:
            begun = time.monotonic()
            # where the data writes " Paris", so is a typed answer meant
            said = self.blanks + completion if prompt and completion == completion.lstrip() else completion
            self.check()
            store, places = self.answer(self.question.problem(prompt, said))
            texts = texts_of(self.problem, self.records, places)
            texts["query"] = {self.question.id: Passage(prompt, completion)}
            (found,) = questions(influence.scored(store), texts, self.k)
        except UserError as error:
            return _as_json({"error": str(error)}, 400) if plain else Reply(asked_page(replace(page, error=str(error))))
        finally:
            doing(WAITING)
        if plain:
            return _as_json(as_json(found), 200)
        took = time.monotonic() - begun
        return Reply(asked_page(replace(page, sides=found.sides, seconds=took, search=store.attrs.get("search"))))

    def answer(self, problem: Problem) -> tuple[xr.Dataset, np.ndarray]:
        """The method's answer about the pairs that it finds, and the numbers of their training examples [1, C]."""
        method = self.config.method
        seen = method.found(problem)
        return method.attribute(seen), seen.pairs


def _as_json(value: object, status: int) -> Reply:
    return Reply(json.dumps(value, ensure_ascii=False), "application/json", status)


def _run(patterns: list[str]) -> Path:
    """The one run that is named."""
    found = [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))]
    runs = [one for one in found if (one / CONFIG).exists()]
    if len(runs) != 1:
        raise UserError(
            f"serve=true: asks the index of one run of attribute.py, and runs={patterns} names {len(runs)}; give "
            "runs=[FOLDER]"
        )
    return runs[0]


def _configured(run: Path) -> AttributeConfig:
    """What the run was asked, with candidates that are found and without questions, in one process."""
    file = run / CONFIG
    values = read_settings(file)
    if "method" not in values:
        raise UserError(f"{run}: is no run of attribute.py; name one that was asked with candidates=best")
    if values.get("products") is not None:
        raise UserError(f"{run}: is about stored products, which have no index; name a run of a model")
    trainer = {**values.get("trainer", {}), "strategy": "single", "devices": 1, "nodes": 1}
    values |= {"trainer": trainer, "shard": None, "plan": False, "self_influence": False}
    config: AttributeConfig = Checker(lambda path: str(file), places=places(AttributeConfig)).build(
        AttributeConfig, values
    )
    config.method.check_indexed("serve=true")
    config.candidates = config.candidates if isinstance(config.candidates, Best) else Best()
    config.dataset.query_sets = []
    return config
