"""Training again: on all examples it is the recorded training, what is left out has no part, masks hold."""

import dataclasses

import numpy as np
import pytest
import torch
from tasks import OPTIMISERS, problem, recorded, settings

from tdaexp.data.tensors import TensorCorpus
from tdaexp.training.batches import step_batch
from tdaexp.training.retrain import batches_of_its_own, batches_without, retrain
from tdaexp.training.task_problem import Classification

EVERYONE = np.ones(30, dtype=bool)


@pytest.mark.parametrize("batches", [batches_without, batches_of_its_own])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_on_all_examples_it_is_the_recorded_training(tmp_path, optimiser, batches):
    keys = settings(**OPTIMISERS[optimiser])
    wanted = recorded(tmp_path, keys).parameters(11)
    again = problem()
    retrain(again, keys, batches(keys, 3, EVERYONE))
    for name, parameter in again.module.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


@pytest.mark.parametrize("batches", [batches_without, batches_of_its_own])
def test_what_is_left_out_has_no_part(batches):
    member = EVERYONE.copy()
    member[[2, 17, 29]] = False
    plan = batches(settings(), 3, member)
    assert set(np.concatenate(plan)) == set(np.flatnonzero(member))
    whole = problem()
    inputs = whole.corpus.train.inputs.clone()
    inputs[torch.from_numpy(~member)] = torch.nan
    train = dataclasses.replace(whole.corpus.train, inputs=inputs)
    poisoned = Classification(problem().module, TensorCorpus(train, whole.corpus.test, 3))
    for one in (whole, poisoned):
        retrain(one, settings(), plan)
    for left, right in zip(whole.module.parameters(), poisoned.module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_same_batches_less_what_is_left_out():
    member = EVERYONE.copy()
    member[:5] = False
    keys = settings()
    for step, batch in enumerate(batches_without(keys, 3, member)):
        full = step_batch(step, kind="epochs", seed=3, examples=30, batch_size=8)
        assert batch.tolist() == [place for place in full if member[place]]


def test_own_batches_keep_the_number_of_epochs():
    member = np.arange(30) < 15
    plan = batches_of_its_own(settings(steps=12), 3, member)  # 12 steps of 8 are 3 epochs of 30
    assert [len(batch) for batch in plan] == [8, 7] * 3
    assert sorted(np.concatenate(plan[:2])) == list(range(15))


def test_masks_hold_weights_at_zero_and_an_empty_batch_is_no_update():
    one, other = problem(), problem()
    mask = (torch.arange(24).view(6, 4) % 3 > 0).float()
    plan = batches_without(settings(), 3, EVERYONE)
    retrain(one, settings(), plan, {"0.weight": mask})
    weight = one.module.get_parameter("0.weight")
    assert (weight[mask == 0] == 0).all() and (weight[mask == 1] != 0).all()
    retrain(other, settings(warmup=0), [np.array([], dtype=np.int64)] * 3)
    assert torch.equal(other.module.get_parameter("0.weight"), problem().module.get_parameter("0.weight"))
