"""What models trained again say, for a method that chooses by it: from a bank that is there, not trained on the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tdaexp.app.config import AttributeConfig
from tdaexp.building.retraining import recipe_of
from tdaexp.metrics.judging_settings import Lds
from tdaexp.metrics.lds import subset
from tdaexp.metrics.retrained import SAME, Retrained
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.training.bank import Bank


def trained_again(
    config: AttributeConfig, problem: Problem, subsets: int, left_out: float
) -> tuple[np.ndarray, np.ndarray]:
    """Members [S, N] of the subsets of `metric.lds`, and the queries' measurements [S, Q] by the models of its bank.

    From the explained start in its batches. Errors (UserError): a model that cannot be trained again; a bank without
    these models, with the command that makes them.
    """
    recipe = recipe_of(config)
    if recipe.ids != problem.train.ids:
        raise UserError(
            "method.objective=lds: the data set trains on other examples, or in another order, than it shows"
        )
    again = dataclasses.replace(config.metric.retraining, starts=[SAME])
    lds = Lds(subsets=subsets, left_out=left_out, ceiling=0)
    settings = dataclasses.replace(config.metric, lds=lds, retraining=again)
    evidence = Retrained(problem, Bank.of(recipe, Path(config.cache_dir)), settings)
    count = len(problem.train)
    members = np.stack([subset(count, 1 - left_out, settings.seed, number) for number in range(subsets)])
    everyone = np.ones((1, count), dtype=bool)  # by which a recipe is checked
    variants = [evidence.variant(member, SAME, 0) for member in (*members, *everyone)]
    if missing := len(evidence.bank.missing(variants)):
        raise UserError(
            f"method.objective=lds: {missing} of {len(variants)} models trained again are not in the bank; make them, "
            "from a run of another method on the same model and data: python attribute.py method=dot candidates=all …; "
            f"python evaluate.py metric=lds metric.lds.subsets={subsets} metric.lds.left_out={left_out:g} runs=[FOLDER]"
        )
    _, outputs, _ = next(evidence.starts(members, range(subsets), "lds", "leave more out (method.left_out)"))
    return members, outputs
