"""Checkpoints that a callback kept are what the loop had, and the methods that use them read them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from small import QUERIES, TEXTS, new_model, trainer

import tdaexp
from tdaexp.loops.keep import KeepCheckpoints
from tdaexp.loops.loop import Loop
from tdaexp.loops.transformers import TransformersCallback
from tdaexp.models.loaded import quiet_transformers
from tdaexp.runtime.errors import UserError
from tdaexp.training.kept import kept_checkpoints
from tdaexp.training.optimizer_state import read_state

RATES = [1e-2 * (1 - step / 5) for step in range(5)]


class Snapshots(transformers.TrainerCallback):
    """What the model and the optimiser were after each update."""

    def __init__(self):
        self.weights, self.state = {}, {}

    def on_step_end(self, args, state, control, model, optimizer, **_):
        self.weights[state.global_step] = {name: one.detach().clone() for name, one in model.named_parameters()}
        self.state[state.global_step] = {
            name: {key: value.clone() for key, value in optimizer.state[one].items()}
            for name, one in model.named_parameters()
        }


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder that a run of the Trainer kept, and what really was there."""
    place = tmp_path_factory.mktemp("kept")
    model, tokenizer = new_model()
    wanted = Snapshots()
    run = trainer(model, tokenizer, place / "out", TransformersCallback(KeepCheckpoints(place / "kept", every=2)),
                  gradient_accumulation_steps=2)  # fmt: skip
    run.add_callback(wanted)
    run.train()
    return place / "kept", wanted


def test_kept_weights_rates_and_states_are_the_loops(kept):
    folder, wanted = kept
    found = kept_checkpoints(folder / "model")
    assert [one.step for one in found] == [2, 4]
    np.testing.assert_allclose([one.rate for one in found], [np.mean(RATES[:2]), np.mean(RATES[2:4])])
    for one in found:
        weights = load_file(one.folder / "model.safetensors")
        own = wanted.weights[one.step]
        assert all(torch.equal(weights[name], own[name]) for name in weights)
        state = read_state(one.folder / "optimizer.safetensors", own)
        assert state.settings.step == one.step and state.settings.lr == pytest.approx(RATES[one.step])
        for name, (first, second) in ((name, state.moments(name)) for name in own):
            assert torch.equal(first, wanted.state[one.step][name]["exp_avg"])
            assert torch.equal(second, wanted.state[one.step][name]["exp_avg_sq"])
        assert {name for name, decay in state.settings.weight_decay.items() if decay == 0.1} == {
            name for name in own if "norm" not in name
        }
    last = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(last[name], wanted.weights[5][name]) for name in last)


def test_tracin_reads_what_was_kept(kept, tmp_path):
    """Σ over checkpoints of rate x dot product, by hand from the checkpoints' own weights."""
    folder, _ = kept
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    train, queries = [{"text": text} for text in TEXTS[:3]], [{"text": text} for text in QUERIES]
    keys = {"cache": tmp_path, "trust": False, "dataset": {"template": "plain"}}
    answer = tdaexp.attribute(model, train, queries, "tracin", **keys)
    assert answer.dataset.attrs["steps"] == [2, 4]
    total = 0.0
    for step, rate in ((2, np.mean(RATES[:2])), (4, np.mean(RATES[2:4]))):
        with quiet_transformers():
            there = transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / f"step-{step}")
        total = total + rate * tdaexp.attribute(there, train, queries, "dot", **keys).dataset["influence"].values
    np.testing.assert_allclose(answer.dataset["influence"].values, total, rtol=1e-4, atol=1e-8)


def test_source_reads_the_states_and_the_rates(kept, tmp_path):
    folder, _ = kept
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    train, queries = [{"text": text} for text in TEXTS[:3]], [{"text": text} for text in QUERIES]
    keys = {"cache": tmp_path, "trust": False, "dataset": {"template": "plain"}, "components": ["layers.1.mlp.down"]}
    answer = tdaexp.attribute(model, train, queries, "source", form="adam", segments=2, **keys)
    assert answer.dataset.attrs["steps"] == [2, 4]
    values = answer.dataset["influence"].values
    assert np.isfinite(values).all() and values.any()


def test_a_training_that_goes_on_keeps_what_the_whole_one_keeps(tmp_path):
    def run(folder, steps, resume=None, save="no"):
        model, tokenizer = new_model()
        callback = TransformersCallback(KeepCheckpoints(tmp_path / folder, every=2))
        one = trainer(model, tokenizer, tmp_path / "out", callback, lr_scheduler_type="constant", max_steps=steps,
                      save_strategy=save, save_steps=2)  # fmt: skip
        one.train(resume_from_checkpoint=resume)

    run("whole", 4)
    run("cut", 3, save="steps")
    run("cut", 4, resume=str(tmp_path / "out" / "checkpoint-2"))
    for step in (2, 4):
        one, two = (
            load_file(tmp_path / folder / "checkpoints" / f"step-{step}" / "optimizer.safetensors")
            for folder in ("whole", "cut")
        )
        assert all(torch.equal(one[name], two[name]) for name in one)
    notes = [json.loads((tmp_path / name / "model" / "training.json").read_text()) for name in ("whole", "cut")]
    assert notes[0]["course"] == notes[1]["course"] and notes[0]["settings"] == notes[1]["settings"]


@pytest.mark.parametrize(
    ("optimizer", "state", "said"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), True, "AdamW's, and this is SGD; take state=False"),
        (lambda p: torch.optim.RMSprop(p, 0.1), True, "the updates of RMSprop are not known"),
        (lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1), True, "the updates of Adam are not known"),
        (lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True), True, "the updates of AdamW are not known"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), False, "the updates of SGD are not known"),
    ],
)
def test_optimisers_that_it_cannot_keep(tmp_path, optimizer, state, said):
    model, tokenizer = new_model()
    with pytest.raises(UserError, match=said):
        Loop(model, optimizer(model.parameters()), KeepCheckpoints(tmp_path / "new", state=state),
             tokenizer=tokenizer).__enter__()  # fmt: skip


def test_what_else_it_refuses(tmp_path):
    model, tokenizer = new_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for keys, said in (
        ({"model": torch.nn.Linear(2, 2)}, "is no model of transformers; Record"),
        ({"tokenizer": None}, "give tokenizer=TOKENIZER"),
        ({"start": 3}, "goes on from step 3, and .*course.json does not tell"),
    ):
        whole = {"model": model, "tokenizer": tokenizer, "start": 0, **keys}
        with pytest.raises(UserError, match=said):
            Loop(whole.pop("model"), optimizer, KeepCheckpoints(tmp_path / "new"), **whole).__enter__()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(UserError, match="holds something already; name a new folder"):
        Loop(model, optimizer, KeepCheckpoints(tmp_path / "full"), tokenizer=tokenizer).__enter__()
    with pytest.raises(UserError, match="every=0 must be at least 1"):
        KeepCheckpoints(tmp_path, every=0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5})
    with pytest.raises(UserError, match="learning rates of their own"), \
            Loop(model, optimizer, KeepCheckpoints(tmp_path / "rates"), tokenizer=tokenizer):  # fmt: skip
        model(input_ids=torch.zeros(1, 3, dtype=torch.long)).logits.sum().backward()
        optimizer.step()


def test_a_loop_of_ones_own_without_state(tmp_path):
    model, tokenizer = new_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with Loop(model, optimizer, KeepCheckpoints(tmp_path / "kept", 1, state=False), tokenizer=tokenizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(input_ids=torch.arange(6).view(1, 6), labels=torch.arange(6).view(1, 6)).loss.backward()
            optimizer.step()
            rates.step()
    assert [(one.step, one.rate) for one in kept_checkpoints(tmp_path / "kept" / "model")] == [(1, 0.1), (2, 0.05)]
    assert not list(tmp_path.rglob("optimizer.safetensors"))
    assert not model._forward_pre_hooks and not optimizer._optimizer_step_pre_hooks
