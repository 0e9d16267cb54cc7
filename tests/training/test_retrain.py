"""Training again: on all examples it is the recorded training, what is left out has no part, masks hold."""

import dataclasses

import numpy as np
import pytest
import torch
from tasks import OPTIMISERS, problem, recorded, settings

from tdaexp.data.tensors import TensorCorpus
from tdaexp.training.batches import step_batch
from tdaexp.training.retrain import Batch, batches_of_its_own, batches_without, retrain
from tdaexp.training.task_problem import Classification

EVERYONE = np.ones(30, dtype=bool)


@pytest.mark.parametrize("batches", [batches_without, batches_of_its_own])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_on_all_examples_it_is_the_recorded_training(tmp_path, optimiser, batches):
    keys = settings(**OPTIMISERS[optimiser])
    wanted = recorded(tmp_path, keys).parameters(11)
    again = problem()
    retrain(again, keys, batches(again, keys, 3, EVERYONE))
    for name, parameter in again.module.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


@pytest.mark.parametrize("batches", [batches_without, batches_of_its_own])
def test_what_is_left_out_has_no_part(batches):
    member = EVERYONE.copy()
    member[[2, 17, 29]] = False
    whole = problem()
    plan = batches(whole, settings(), 3, member)
    assert set(np.concatenate([batch.indices for batch in plan])) == set(np.flatnonzero(member))
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
    for renormalised in (False, True):
        for step, batch in enumerate(batches_without(problem(), keys, 3, member, renormalised)):
            full = step_batch(step, kind="epochs", seed=3, examples=30, batch_size=8)
            assert batch.indices.tolist() == [place for place in full if member[place]]
            assert np.allclose(batch.weights, 1 / len(batch.indices if renormalised else full))


def test_own_batches_keep_the_number_of_epochs():
    member = np.arange(30) < 15
    plan = batches_of_its_own(problem(), settings(steps=12), 3, member)  # 12 steps of 8 are 3 epochs of 30
    assert [len(batch.indices) for batch in plan] == [8, 7] * 3
    assert sorted(np.concatenate([batch.indices for batch in plan[:2]])) == list(range(15))
    assert np.allclose(plan[1].weights, 1 / 7)


def test_a_gradient_is_clipped_where_the_settings_say_so():
    """One step of plain SGD moves by at most lr · clip, and by that where the gradient is longer."""
    keys = settings(optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0, steps=1, lr=1.0, clip=1e-3)
    one = problem()
    retrain(one, keys, batches_without(one, keys, 3, EVERYONE))
    moved = [(a - b).flatten() for a, b in zip(one.module.parameters(), problem().module.parameters(), strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_batch_of_which_nothing_is_left_has_weight_0(optimiser):
    """As with all examples in it, of weight 0: decay and momentum of the step go on."""
    keys = settings(**OPTIMISERS[optimiser], batch_size=2)
    one, other, member = problem(), problem(), EVERYONE.copy()
    whole = [step_batch(step, kind="epochs", seed=3, examples=30, batch_size=2) for step in range(11)]
    member[whole[4]] = False
    plan = batches_without(one, keys, 3, member)
    assert [len(batch.indices) for batch in plan] == [2] * 4 + [0] + [2] * 6
    retrain(one, keys, plan)
    retrain(other, keys, [Batch(indices, member[indices] / 2) for indices in whole])
    for left, right in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_masks_hold_weights_at_zero():
    one = problem()
    mask = (torch.arange(24).view(6, 4) % 3 > 0).float()
    plan = batches_without(one, settings(), 3, EVERYONE)
    retrain(one, settings(), plan, {"0.weight": mask})
    weight = one.module.get_parameter("0.weight")
    assert (weight[mask == 0] == 0).all() and (weight[mask == 1] != 0).all()
