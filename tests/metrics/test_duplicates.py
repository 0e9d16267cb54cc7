"""Copies are told by content, and found; scores of copies are as far apart as was planted."""

import dataclasses

import numpy as np
import pytest
import torch
from small_bank import EXAMPLES, QUERIES, evidence

from tdaexp.data.examples import Example, Examples
from tdaexp.metrics.as_it_is import AsItIs
from tdaexp.metrics.duplicates import contents, judge_duplicates
from tdaexp.metrics.judging_settings import Duplicates
from tdaexp.metrics.settings import MetricSettings
from tdaexp.objectives.classes import Classes
from tdaexp.runtime.errors import UserError

SETTINGS = MetricSettings(bootstrap=100, duplicates=Duplicates(pairs=300))


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Queries 0 to 3 repeat rows 0 to 3, and rows 50 to 59 repeat rows 20 to 29."""
    plain = evidence(tmp_path_factory.mktemp("cache"), SETTINGS).problem
    inputs, targets = plain.train.inputs.clone(), plain.train.targets.clone()
    inputs[50:], targets[50:] = inputs[20:30], targets[20:30]
    asked, classes = plain.queries.inputs.clone(), plain.queries.targets.clone()
    asked[:4], classes[:4] = inputs[:4], targets[:4]
    return dataclasses.replace(
        plain,
        train=dataclasses.replace(plain.train, inputs=inputs, targets=targets),
        queries=dataclasses.replace(plain.queries, inputs=asked, targets=classes),
    )


def judged(problem, scores: np.ndarray) -> dict[str, tuple[float, int]]:
    found = judge_duplicates(AsItIs(problem, SETTINGS), {"method": scores})
    return {one.metric: (one.interval.value, one.queries) for one in found}


def test_the_content_of_examples(problem):
    found = contents(problem.train, Classes())
    assert found[20:30] == found[50:] and len(set(found)) == 50
    assert contents(problem.queries, Classes())[:4] == found[:4]
    other = dataclasses.replace(problem.train, targets=problem.train.targets.roll(1))
    assert contents(other, Classes())[0] != found[0]  # another class is another example


def test_texts_that_read_the_same():
    def example(one: str, text: str) -> Example:
        return Example(one, np.array([1, 2]), np.array([False, True]), text)

    first, second, third = contents(Examples([example("a", "Oslo  lies\nnorth"), example("b", "Oslo lies north"),
                                              example("c", "Oslo lies south")]), Classes())  # fmt: skip
    assert first == second != third


def test_found_and_apart(problem):
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((QUERIES, EXAMPLES))
    scores[:, 50:] = scores[:, 20:30]
    scores[[0, 1, 2], [0, 1, 2]] = 9  # and the fourth query's best row is another
    assert judged(problem, scores) == {"duplicate_found": (0.75, 4), "duplicates_apart": (0, QUERIES)}
    value, _ = judged(problem, generator.standard_normal((QUERIES, EXAMPLES)))["duplicates_apart"]
    assert 0.7 < value < 1.3
    near = scores + 0.1 * generator.standard_normal(scores.shape)
    assert 0.05 < judged(problem, near)["duplicates_apart"][0] < 0.15  # 0.1 √2 against √2, more for the nines


def test_only_scored_pairs_count(problem):
    scores = np.full((QUERIES, EXAMPLES), np.nan)
    scores[:, 30:50] = np.random.default_rng(0).standard_normal((QUERIES, 20))  # no copy among them
    assert judged(problem, scores) == {}
    scores[0, :2] = 5, 1
    assert judged(problem, scores) == {"duplicate_found": (1, 1)}


def test_scores_that_are_all_the_same_tell_nothing(problem):
    assert "duplicates_apart" not in judged(problem, np.ones((QUERIES, EXAMPLES)))


def test_without_a_copy_there_is_nothing_to_find(tmp_path):
    plain = evidence(tmp_path, SETTINGS).problem
    assert len(set(contents(plain.train, Classes()))) == EXAMPLES and torch.is_tensor(plain.train.inputs)
    with pytest.raises(UserError, match=r"no query repeats a training row.*dataset.repeated=0.1"):
        judge_duplicates(AsItIs(plain, SETTINGS), {"method": np.zeros((QUERIES, EXAMPLES))})
