"""Layer swaps and retrainings from grafts, on a recorded training of a few steps."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tdaexp.data.modular_addition import ModularAddition
from tdaexp.models.grokking import Grokking
from tdaexp.papers import transplant
from tdaexp.papers.base import Evidence
from tdaexp.papers.transplant import confusion, grafted, parameters_of, rests, retrainings, swap_accuracies
from tdaexp.runtime.errors import UserError
from tdaexp.training import recorded
from tdaexp.training.settings import FitSettings

FIT = FitSettings(steps=12, batch_size=40, lr=1e-2, warmup=0, schedule="constant", clip=0.0, batches="epochs",
                  weight_decay=1.0, decay="all", record=1, checkpoint_every=2)  # fmt: skip
GROUPS = {"attention": ["layers.0.attn"], "outer": ["embed", "lm_head"]}
EVERY = {"all": ["embed", "layers.0", "lm_head"]}


def evidence_in(folder) -> Evidence:
    model = Grokking(hidden=8, heads=2, inner=16, tied_heads=True)
    dataset = ModularAddition(train=40, test=20, modulus=11)
    trainer = SimpleNamespace(fit=FIT, accelerator="cpu")
    return Evidence(SimpleNamespace(model=model, dataset=dataset, trainer=trainer, seed=0, cache_dir=str(folder)))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory) -> Evidence:
    found = evidence_in(tmp_path_factory.mktemp("grafts"))
    assert found.task.trajectory.settings.total == 12
    return found


def test_names_of_a_graft(evidence):
    own = parameters_of(evidence.task, "attention", ["layers.0.attn"])
    assert own == [f"layers.0.attn.{name}" for name in ("qkv.weight", "qkv.bias", "o.weight", "o.bias")]
    assert sorted(parameters_of(evidence.task, "all", EVERY["all"])) == sorted(evidence.task.trajectory.parameters(0))
    with pytest.raises(UserError, match=r"analysis\.grafts: attention: unknown component 'layers.0.atn'"):
        parameters_of(evidence.task, "attention", ["layers.0.atn"])


def test_swaps_against_the_module_itself(evidence, monkeypatch):
    task, targets, seen = evidence.task, evidence.task.corpus.test.targets, []
    real = transplant.answers

    def answers(module, parameters, examples):
        given = real(module, parameters, examples)
        seen.append((parameters, given))
        return given

    monkeypatch.setattr(transplant, "answers", answers)
    table = swap_accuracies(task, GROUPS | EVERY, [0, 6])
    start, end = task.trajectory.parameters(0), task.trajectory.parameters(12)
    outer = {name: end[name] for name in ("embed.weight", "lm_head.weight", "lm_head.bias")}
    attention = {name: end[name] for name in end if ".attn." in name}
    wanted = [start, {**start, **attention}, {**start, **outer}, end]
    assert list(table["graft"]) == ["none", "attention", "outer", "all"] * 2
    for (parameters, given), own, accuracy in zip(seen, wanted, table["accuracy"], strict=False):
        assert all(torch.equal(parameters[name], own[name]) for name in own)
        module = evidence.config.model.build(task.corpus)
        module.load_state_dict(own)
        answered = module(task.corpus.test.inputs).argmax(1)
        assert given.tolist() == answered.tolist()
        assert accuracy == pytest.approx(float((answered == targets).float().mean()))
    assert all(torch.equal(seen[4][0][name], value) for name, value in task.trajectory.parameters(6).items())


def test_confusions_count_right_class_and_answer(evidence):
    task = evidence.task
    every = parameters_of(task, "all", EVERY["all"])
    for step, names, own in ((0, [], 0), (0, every, 12)):
        counts, wanted = confusion(task, step, names, 11), np.zeros((11, 11), dtype=int)
        module = evidence.config.model.build(task.corpus)
        module.load_state_dict(task.trajectory.parameters(own))
        given = module(task.corpus.test.inputs).argmax(1).tolist()
        for right, answer in zip(task.corpus.test.targets.tolist(), given, strict=True):
            if answer < 11:  # the tokens + and = are no residues
                wanted[right, answer] += 1
        assert (counts == wanted).all() and counts.sum() > 0


@pytest.fixture
def starts(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The parameters that each training starts from."""
    seen = []

    def fit(problem, settings, *, folder, seed, identity):
        seen.append({name: parameter.detach().clone() for name, parameter in problem.module.named_parameters()})
        return real(problem, settings, folder=folder, seed=seed, identity=identity)

    real = recorded.fit_recorded
    monkeypatch.setattr("tdaexp.papers.transplant.fit_recorded", fit)
    return seen


def test_a_retraining_starts_from_the_graft_and_new_weights(evidence, starts):
    table = retrainings(evidence, GROUPS, [12, 6], seeds=2, steps=4)
    assert len(starts) == 8 and set(table["step"]) == {0, 1, 2, 3, 4}
    donor, fresh = evidence.task.trajectory.parameters(12), dataclasses.replace(evidence.config.model, seed=1)
    plain = dict(fresh.build(evidence.task.corpus).named_parameters())
    for name, value in starts[0].items():
        assert torch.equal(value, donor[name] if ".attn." in name else plain[name])
    assert not torch.equal(starts[0]["embed.weight"], starts[1]["embed.weight"])  # another seed
    assert retrainings(evidence, GROUPS, [12, 6], seeds=2, steps=4).equals(table) and len(starts) == 8  # from the cache


def test_the_other_weights_may_be_drawn_anew(evidence, starts):
    retrainings(evidence, {"outer": GROUPS["outer"]}, [12], seeds=2, steps=2, fresh=0.1)
    donor = evidence.task.trajectory.parameters(12)
    assert torch.equal(starts[0]["embed.weight"], donor["embed.weight"])
    drawn = torch.cat([value.flatten() for name, value in starts[0].items() if name.startswith("layers")])
    assert drawn.std() == pytest.approx(0.1, rel=0.1) and abs(float(drawn.mean())) < 0.02
    assert not torch.equal(starts[0]["layers.0.mlp.up.bias"], starts[1]["layers.0.mlp.up.bias"])  # another seed


class Killed(BaseException):
    """As abrupt as a signal."""


def test_a_killed_study_goes_on_where_it_stopped(evidence, tmp_path, monkeypatch):
    straight = retrainings(evidence, GROUPS, [12], seeds=1, steps=8)
    killed, taken, real = evidence_in(tmp_path), [], recorded._step
    assert killed.task.fingerprint == evidence.task.fingerprint

    def step(*arguments):
        taken.append(arguments[-1])
        if len(taken) == 14:  # in the second of two trainings, past a checkpoint
            raise Killed
        real(*arguments)

    monkeypatch.setattr(recorded, "_step", step)
    with pytest.raises(Killed):
        retrainings(killed, GROUPS, [12], seeds=1, steps=8)
    found = retrainings(killed, GROUPS, [12], seeds=1, steps=8)
    assert found.equals(straight)
    assert taken == [*range(8), *range(6), *range(4, 8)]  # the first training is not taken again


def test_a_graft_leaves_the_host_alone():
    host, donor = {"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.ones(2), "b": torch.ones(2)}
    found = grafted(host, donor, ["b"])
    assert torch.equal(found["a"], host["a"]) and torch.equal(found["b"], donor["b"]) and not host["b"].any()


def test_the_rest_of_a_graft():
    groups = {
        "inner": ["attn", "up"],
        "attention": ["attn"],
        "outer": ["embed", "down"],
        "all but": ["embed", "up", "down"],
    }
    assert rests(groups) == {"inner": "outer", "outer": "inner", "attention": "all but", "all but": "attention"}
    assert rests({"inner": ["attn"], "outer": ["embed"], "more": ["up"]}) == {}
