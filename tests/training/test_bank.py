"""The bank of models trained again: each is trained once, to the same bits after a kill; what is damaged is named."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_bank import EXAMPLES, SETTINGS, evidence

from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.ranks import Ranks
from tdaexp.training import bank as place
from tdaexp.training.bank import WEIGHTS, Bank, Variant

EVERYONE = np.ones(EXAMPLES, dtype=bool)


@pytest.fixture
def bank(tmp_path) -> Bank:
    return evidence(tmp_path, MetricSettings()).bank


def variants(count: int, seed: int | None = None) -> list[Variant]:
    return [Variant(np.arange(EXAMPLES) != row, seed) for row in range(count)]


def weights(bank: Bank, wanted: list[Variant]) -> list[dict[str, torch.Tensor]]:
    return [load_file(bank.folder / one.key / WEIGHTS) for one in wanted]


def same(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)


def counted(monkeypatch, fails_after: int = 10**9) -> list[int]:
    """A list that grows with each training; after so many the machine goes away."""
    calls, plain = [], place.retrain

    def retrain(*arguments):
        if len(calls) == fails_after:
            raise OSError("the machine went away")
        calls.append(1)
        plain(*arguments)

    monkeypatch.setattr(place, "retrain", retrain)
    return calls


def test_a_killed_run_goes_on_to_the_same_bits(bank, tmp_path, monkeypatch):
    wanted = variants(5)
    straight = evidence(tmp_path / "straight", MetricSettings()).bank
    straight.train(wanted, "test")
    calls = counted(monkeypatch, fails_after=2)
    with pytest.raises(OSError, match="went away"):
        bank.train(wanted, "test")
    assert len(calls) == 2 and len(bank.missing(wanted)) == 3
    monkeypatch.undo()
    calls = counted(monkeypatch)
    bank.train(wanted, "test")
    bank.train([*wanted, *wanted], "test")
    assert len(calls) == 3 and same(weights(bank, wanted), weights(straight, wanted))


def test_trainings_are_deterministic_on_their_device(bank, monkeypatch):
    """On a GPU the same bits need torch's deterministic operations; a CPU has them."""
    seen = []
    monkeypatch.setattr(place, "deterministic", lambda device: seen.append(device) or contextlib.nullcontext())
    bank.train(variants(2), "test")
    assert seen == [torch.device("cpu")] * 2


def test_networks_are_those_that_were_trained(bank):
    wanted = variants(2)
    bank.train(wanted, "test")
    for model, stored in zip(bank.networks(wanted), weights(bank, wanted), strict=True):
        assert all(torch.equal(one, stored[name]) for name, one in model.named_parameters())


def test_processes_share_the_trainings(bank, monkeypatch):
    """Each of two processes trains every other one; between them, all."""
    wanted, done = variants(5), []
    monkeypatch.setattr(ranks, "barrier", lambda: None)
    monkeypatch.setattr(ranks, "from_first", lambda value: wanted)
    for rank in range(2):
        with ranks.acting_as(Ranks(rank, 2)):
            calls = counted(monkeypatch)
            bank.train(wanted, "test")
            done.append(len(calls))
    assert done == [3, 2] and not bank.missing(wanted)


def test_own_starts_differ(bank):
    wanted = [Variant(EVERYONE), Variant(EVERYONE, 5), Variant(EVERYONE, 6), Variant(EVERYONE, 5)]
    bank.train(wanted, "test")
    first, *own = weights(bank, wanted)
    assert not any(torch.equal(a["0.weight"], b["0.weight"]) for a, b in [(first, own[0]), (own[0], own[1])])
    assert same(own[:1], own[2:]) and len({one.key for one in wanted}) == 3


def test_what_decides_a_model_is_in_its_name():
    keys = {one.key for one in [*variants(3), *variants(3, 5), Variant(EVERYONE), Variant(EVERYONE, None, True)]}
    assert len(keys) == 8


def test_a_damaged_file_is_named(bank):
    (one,) = wanted = variants(1)
    bank.train(wanted, "test")
    file = bank.folder / one.key / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{one.key}.*{WEIGHTS}: its checksum is wrong"):
        list(bank.networks(wanted))


@pytest.mark.parametrize("gone", [range(EXAMPLES), range(0, EXAMPLES, 3)])
def test_subsets_without_a_class_or_any_example(bank, gone, monkeypatch):
    calls = counted(monkeypatch)
    member = EVERYONE.copy()
    member[list(gone)] = False
    with pytest.raises(UserError, match=r"test: leaves no example (to train on|of class 0); leave fewer out"):
        bank.train([*variants(2), Variant(member)], "test")
    assert not calls


def test_a_training_that_diverges(tmp_path):
    wild = evidence(tmp_path, MetricSettings()).bank
    wild = dataclasses.replace(
        wild, recipe=dataclasses.replace(wild.recipe, settings=dataclasses.replace(SETTINGS, lr=1e38, weight_decay=1.0))
    )
    with pytest.raises(UserError, match=r"test: a training without 1 of the 60 examples diverged.*trainer\.fit\.lr"):
        wild.train(variants(1), "test")
    assert len(wild.missing(variants(1))) == 1
