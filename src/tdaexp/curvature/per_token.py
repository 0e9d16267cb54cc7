"""What `per_token` adds to an answer: the shares that tokens have in the scores of each query's best candidates."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.curvature.tokens import TokenScoring, pair_tokens
from tdaexp.data.examples import Example
from tdaexp.models.tokenizer import pieces
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError


def check_per_token(count: int) -> None:
    """Refuse a negative number of candidates."""
    if count < 0:
        raise UserError(f"method.per_token={count}: must be 0 (off) or the number of candidates per query, e.g. 5")


def with_tokens(
    dataset: xr.Dataset, problem: Problem, count: int, scoring: TokenScoring, *depends_on: object, by: type
) -> xr.Dataset:
    """Add the tokens of each query's `count` best candidates and their shares (see `tdaexp.influence`); 0 adds none.

    `depends_on`: what the scores depend on beside the problem; `by`: the method. Costs a pass for each query and for
    each such pair.
    """
    if not count:
        return dataset
    for one in problem.queries:
        if one.rejected is not None:
            raise UserError(
                f"method.per_token={count}: tells the tokens of one text apart, and query '{one.id}' compares two "
                "answers; take per_token=0, or remove the rejected answer"
            )
    best = influence.best(dataset, count)
    pairs = np.where(best < 0, -1, np.take_along_axis(problem.pairs, best, axis=1))
    train, query = pair_tokens(scoring, pairs, store=problem.store("tokens", pairs, *depends_on, by=by))

    tokenizer = problem.loaded.tokenizer if problem.loaded else None

    def written(example: Example, width: int, classified: bool) -> list[str]:
        found = [] if tokenizer is None else pieces(tokenizer, example.tokens.tolist())
        if found and classified and problem.classes is not None:
            found[-1] = f" [{problem.classes[int(example.tokens[-1])]}]"
        return found + [""] * (width - len(found))

    blank = Example("", np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), "")
    own = problem.finetuned is None
    train_tokens = [[written(blank if k < 0 else problem.train[k], train.shape[2], own) for k in row] for row in pairs]
    query_tokens = [written(example, query.shape[2], True) for example in problem.queries]
    return dataset.assign(
        best=(("query", "rank"), best),
        train_share=(("query", "rank", "train_position"), train),
        query_share=(("query", "rank", "query_position"), query),
    ).assign_coords(
        train_token=(("query", "rank", "train_position"), np.array(train_tokens, dtype=object)),
        query_token=(("query", "query_position"), np.array(query_tokens, dtype=object)),
    )
