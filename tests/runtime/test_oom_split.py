"""What runs out of memory is halved and goes on. The lack of memory is a fake."""

import logging

import numpy as np
import pytest
import torch

from tdaexp.gradients.schedule import Block, halves
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.oom_split import Shrinking, out_of_memory, two


class Scarce:
    """Squares numbers, at most `most` at a time."""

    def __init__(self, most: int, error: BaseException | None = None) -> None:
        self.most, self.tried = most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, members: list[int]) -> np.ndarray:
        self.tried.append(len(members))
        if len(members) > self.most:
            raise self.error
        return np.array(members) ** 2


def test_halved_until_it_fits_and_so_is_what_follows(caplog):
    work = Scarce(2)
    compute = Shrinking(work, two, np.concatenate)
    with caplog.at_level(logging.WARNING, logger="tdaexp"):
        assert compute(list(range(7))).tolist() == [k**2 for k in range(7)]
        first = len(work.tried)
        assert compute(list(range(8))).tolist() == [k**2 for k in range(8)]
    assert work.tried[first:] == [2, 2, 2, 2]  # no further failure
    assert [message.startswith("out of memory: batches are halved") for message in caplog.messages] == [True, True]


def test_one_example_that_does_not_fit_is_told_in_one_line():
    with pytest.raises(UserError, match="out of memory even with one example") as error:
        Shrinking(Scarce(0), two, np.concatenate)([1, 2, 3])
    assert "\n" not in str(error.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        Shrinking(Scarce(0, RuntimeError("shapes differ")), two, np.concatenate)([1, 2])
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))


def test_halves_of_a_block_meet_all_pairs_with_smaller_batches():
    pairs = np.array([[0, 1], [1, 2], [3, -1]])
    block = Block([[2, 0], [1]], [[0, 1, 2], [3]])
    first, second = halves(block, pairs)
    assert [query for batch in first.queries for query in batch] == [2, 0]
    assert [query for batch in second.queries for query in batch] == [1]
    for half in (first, second):
        queries = [query for batch in half.queries for query in batch]
        needed = {int(index) for query in queries for index in pairs[query] if index >= 0}
        assert {index for batch in half.train for index in batch} == needed
        assert max(map(len, half.train)) <= 2
    assert halves(Block([[1]], [[1], [2]]), pairs) == []
    (finer,) = halves(Block([[1]], [[1, 2]]), pairs)
    assert finer == Block([[1]], [[1], [2]])
