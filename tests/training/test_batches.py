import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdaexp.training.batches import batch_indices, step_batch

seeds, sizes, counts = st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 12)


@given(seeds, sizes, counts)
def test_every_epoch_holds_every_example_once(seed, size, count):
    steps = 3 * count  # three epochs times `size`, in batches that may span their ends
    stream = np.concatenate([batch_indices(s, seed=seed, examples=count, batch_size=size) for s in range(steps)])
    assert len(stream) == steps * size
    for epoch in stream.reshape(-1, count):
        assert sorted(epoch) == list(range(count))


@given(seeds, sizes, st.integers(0, 1000))
def test_a_batch_depends_on_seed_and_step_alone(seed, size, step):
    one = batch_indices(step, seed=seed, examples=50, batch_size=size)
    batch_indices(step + 7, seed=seed + 1, examples=50, batch_size=size)  # what was asked before has no say
    assert np.array_equal(one, batch_indices(step, seed=seed, examples=50, batch_size=size))


def test_seeds_and_epochs_are_shuffled_differently():
    def epoch(number, seed):
        return batch_indices(number, seed=seed, examples=100, batch_size=100).tolist()

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1), epoch(1, 1), list(range(100))]
    assert len({tuple(order) for order in orders}) == 5


def test_epochs_cut_by_themselves_end_in_a_smaller_batch():
    batches = [step_batch(step, kind="epochs", seed=1, examples=10, batch_size=4) for step in range(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(10))
    assert list(batches[0]) != list(batches[3])
    stream = step_batch(2, kind="stream", seed=1, examples=10, batch_size=4)
    np.testing.assert_array_equal(stream, batch_indices(2, seed=1, examples=10, batch_size=4))


@pytest.mark.parametrize("size", [10, 25])
def test_a_full_batch_is_all_examples_in_order(size):
    assert list(step_batch(3, kind="epochs", seed=1, examples=10, batch_size=size)) == list(range(10))
