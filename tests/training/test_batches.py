import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tdaexp.training.batches import batch_indices

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
