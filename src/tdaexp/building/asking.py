"""A question that somebody types, as a problem about the training examples that are there already."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from tdaexp.building.settings import Described
from tdaexp.building.texts import tokenisation
from tdaexp.data.candidates import Candidates
from tdaexp.data.classes import tokenise_classes
from tdaexp.data.examples import Examples
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.loaded import check_tokens
from tdaexp.problem import Problem, Wanted
from tdaexp.runtime.errors import UserError

UNCUT = 1 << 24
"""Tokens: a question is not cut to fit."""


class Question:
    """Makes problems of one question each, from one whose pairs are `wanted`."""

    id = "asked"

    def __init__(self, config: Described, problem: Problem) -> None:
        self.config, self.known = config, problem

    def problem(self, prompt: str, completion: str) -> Problem:
        """The problem of a question. Errors (UserError): it is empty, or longer than what the model reads."""
        known = self.known
        if known.wanted is None:
            raise ValueError("pairs were named before")
        if not completion.strip():
            raise UserError(
                "the completion is empty, and it is what is explained; type the answer there, or the whole text"
            )
        nothing = np.zeros((1, 0), dtype=np.int64)
        return replace(
            known,
            queries=self._tokenised(Record(self.id, prompt, completion)),
            query_set=[self.id],
            candidates=Candidates(nothing, nothing.astype(np.float64)),
            truth=nothing.astype(bool),
            truth_known=np.zeros(1, dtype=bool),
            wanted=Wanted(known.wanted.best, [np.zeros(0, dtype=np.int64)]),
        )

    def _tokenised(self, record: Record) -> Examples:
        config, loaded, classes = self.config, self.known.loaded, self.known.classes
        if loaded is None:
            raise ValueError("no tokenizer")
        if classes is None:
            how = replace(tokenisation(config), max_length=UNCUT, chunk=None)
            found = tokenise([record], loaded.tokenizer, **asdict(how))
        else:
            found = tokenise_classes([record], loaded.tokenizer, classes, UNCUT)
        longest = min(config.dataset.max_length, loaded.max_length)
        if found[0].length > longest:
            raise UserError(
                f"the question has {found[0].length} tokens, and the model reads {longest} (its context, or "
                "dataset.max_length); shorten it"
            )
        check_tokens(loaded.model, found, classes=classes is not None)
        return found
