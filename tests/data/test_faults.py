"""Planted faults: as many as asked for, told in `meta`, a function of the seed; refused where there is none."""

import numpy as np
import pytest
import torch

from tdaexp.data.digits import Digits
from tdaexp.data.faults import FLIPPED, REPEATS
from tdaexp.data.modular_addition import ModularAddition
from tdaexp.runtime.errors import UserError


def test_flipped_classes():
    plain, found = Digits(train=200, test=20).corpus(), Digits(train=200, test=20, flipped=0.1).corpus()
    differs = (plain.train.targets != found.train.targets).numpy()
    assert differs.sum() == 20 and (differs == found.train.meta[FLIPPED]).all()
    assert torch.equal(plain.train.inputs, found.train.inputs) and plain.train.ids == found.train.ids
    assert (found.train.meta["label"] == plain.train.targets.numpy()).all()  # what it was is known still
    assert torch.equal(plain.test.targets, found.test.targets)
    again, other = Digits(train=200, test=20, flipped=0.1), Digits(train=200, test=20, flipped=0.1, seed=1)
    assert again.corpus().train.fingerprint() == found.train.fingerprint() != plain.train.fingerprint()
    assert other.corpus().train.fingerprint() != found.train.fingerprint()


def test_a_flipped_class_is_one_that_occurs():
    found = ModularAddition(train=40, test=4, modulus=11, flipped=1.0).corpus().train
    assert found.meta[FLIPPED].all() and (found.targets.numpy() != found.meta["residue"]).all()
    assert found.targets.max() < 11  # the tokens `+` and `=` are classes too, and no answer


def test_repeated_examples():
    found = Digits(train=100, test=20, repeated=0.2).corpus().train
    of = found.meta[REPEATS]
    place = {one: row for row, one in enumerate(found.ids)}
    assert (of != "").sum() == 20 and len(place) == 100 and len(set(of)) == 21
    for row in np.flatnonzero(of != ""):
        first = place[of[row]]
        assert found.ids[row] == f"{of[row]}/again"
        assert torch.equal(found.inputs[row], found.inputs[first]) and found.targets[row] == found.targets[first]
    assert len({one.numpy().tobytes() for one in found.inputs}) == 80


@pytest.mark.parametrize(("key", "value"), [("flipped", -0.1), ("flipped", 1.5), ("flipped", 1e-4), ("repeated", 0.6)])
def test_shares_that_are_none(key, value):
    with pytest.raises(UserError, match=f"dataset.{key}=.*must be 0 or a share of dataset.train=100"):
        Digits(train=100, test=20, **{key: value})


def test_one_class_cannot_be_flipped():
    with pytest.raises(UserError, match="all training examples are of one class"):
        Digits(train=1, test=4, flipped=1.0).corpus()
