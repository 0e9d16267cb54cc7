"""A recording from somebody's loop: each step replays to the next, and the methods that read recordings read it."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from small import Module, Pairs, class_losses, lightning_trainer, loader, net
from torch import nn
from torch.utils.data import DataLoader

import tdaexp
from tdaexp.loops.lightning import LightningCallback
from tdaexp.loops.loop import Loop
from tdaexp.loops.record import Record
from tdaexp.runtime.errors import UserError
from tdaexp.training.trajectory import Trajectory

DATA = Pairs(11)


def train(model, folder, optimizer, accumulate=1, epochs=2, every=1, rates=None):
    """A loop of one's own; `rates` is a scheduler."""
    batches = loader()
    steps = epochs * (len(batches) // accumulate)
    with Loop(model, optimizer, Record(folder, class_losses, every=every), loader=batches, steps=steps):
        for _ in range(epochs):
            for number, batch in enumerate(batches, start=1):
                (class_losses(model, batch).mean() / accumulate).backward()
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                    if rates is not None:
                        rates.step()
    return Trajectory(folder)


def replayed(model, trajectory, optimizer):
    """The largest difference of the recorded states from torch's optimiser on the recorded batches."""
    worst = 0.0
    for step in trajectory.steps:
        ids, weights = trajectory.batch(step)
        for group in optimizer.param_groups:
            group["lr"] = trajectory.lr(step)
        optimizer.zero_grad()
        losses = class_losses(model, (DATA.inputs[ids], DATA.targets[ids]))
        (losses @ torch.from_numpy(weights).float()).backward()
        optimizer.step()
        wanted = trajectory.updated(step)
        worst = max(
            worst, *(float((one.detach() - wanted[name]).abs().max()) for name, one in model.named_parameters())
        )
    return worst


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.3, betas=(0.8, 0.9)),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.7, weight_decay=0.1),
    ],
)
def test_steps_replay(tmp_path, build, accumulate):
    model = net()
    start = copy.deepcopy(model)
    optimizer = build(model.parameters())
    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    found = train(model, tmp_path, optimizer, accumulate, rates=rates)
    found.verify()
    assert len(found) == 2 * (3 // accumulate) and found.settings.examples == 11
    assert [round(found.lr(step) / found.lr(0), 6) for step in found.steps] == [round(0.8**k, 6) for k in found.steps]
    assert replayed(start, found, build(start.parameters())) < 1e-6


def test_in_lightning(tmp_path):
    """Every second step, whose state before it is recorded, too."""
    model = net()
    module = Module(model)
    module.configure_optimizers = lambda: torch.optim.AdamW(model.parameters(), 0.01)
    run = lightning_trainer(LightningCallback(Record(tmp_path, class_losses, every=2), model="net"), max_steps=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run.fit(module, DataLoader(DATA, 4, shuffle=True))
    found = Trajectory(tmp_path)
    found.verify()
    assert found.steps == [0, 2, 4] and [len(found.batch(step)[0]) for step in found.steps] == [4, 3, 4]
    end = found.parameters(5)
    assert all(torch.equal(end[name], one.detach()) for name, one in model.named_parameters())


def test_methods_read_it(tmp_path):
    """`tracin` and `explaind` by one call each; what `explaind` explains is the change of the logits."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    start = copy.deepcopy(model)
    train(model, tmp_path / "recorded", torch.optim.AdamW(model.parameters(), 0.02))
    keys = {"loss": class_losses, "history": tmp_path / "recorded", "cache": tmp_path / "cache", "trust": False}
    asked = Pairs(2, seed=9)
    tracin = tdaexp.attribute(model, DATA, asked, "tracin", moments=3, **keys)
    assert np.isfinite(tracin.dataset["influence"].values).all() and len(tracin.dataset.attrs["steps"]) == 3
    told = tdaexp.attribute(model, DATA, asked, "explaind", keep=["train", "query", "output"], **keys).dataset
    with torch.no_grad():
        change = model(asked.inputs) - start(asked.inputs)
    np.testing.assert_allclose(told["change"].values, change.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told["explained"].values, change.numpy(), rtol=1e-3, atol=1e-4)
    assert told["influence"].sizes["train"] == 11


def answers(start, trajectory, asked, weight):
    """What the queries' likelihood is after the recorded AdamW steps in float64, each row `weight` [N] times."""
    values = [one.detach().double() for one in start.parameters()]
    names = [name for name, _ in start.named_parameters()]
    first, second = ([torch.zeros_like(one) for one in values] for _ in range(2))
    values = [one.requires_grad_() for one in values]
    wide = copy.deepcopy(start).double()

    def losses(values, inputs, targets):
        found = torch.func.functional_call(wide, dict(zip(names, values, strict=True)), (inputs.double(),))
        return nn.functional.cross_entropy(found, targets, reduction="none")

    for count, step in enumerate(trajectory.steps, start=1):
        ids, shares = trajectory.batch(step)
        mine = losses(values, DATA.inputs[ids], DATA.targets[ids])
        gradient = torch.autograd.grad(
            mine @ (torch.from_numpy(shares).double() * weight[ids]), values, create_graph=True
        )
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, gradient, strict=True)]
        rooted = [(v / (1 - 0.999**count)).sqrt() + 1e-8 for v in second]
        values = [
            p * (1 - 0.02 * 0.01) - 0.02 * m / (1 - 0.9**count) / r
            for p, m, r in zip(values, first, rooted, strict=True)
        ]
    return -losses(values, asked.inputs, asked.targets)


def test_magic_reads_it(tmp_path):
    """Derivatives by each row's weight, against autograd through the training in float64."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    start, asked = copy.deepcopy(model), Pairs(2, seed=9)
    trajectory = train(model, tmp_path / "recorded", torch.optim.AdamW(model.parameters(), 0.02))
    keys = {"loss": class_losses, "history": tmp_path / "recorded", "cache": tmp_path / "cache", "trust": False}
    found = tdaexp.attribute(model, DATA, asked, "magic", **keys).dataset["influence"].sum("component").values
    wanted = torch.autograd.functional.jacobian(
        lambda weight: answers(start, trajectory, asked, weight), torch.ones(len(DATA), dtype=torch.float64)
    ).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()  # the recording is of float32


def test_a_recording_of_something_else_is_refused(tmp_path):
    model = net()
    train(model, tmp_path / "recorded", torch.optim.SGD(model.parameters(), 0.1))
    keys = {"loss": class_losses, "history": tmp_path / "recorded", "cache": tmp_path / "cache", "trust": False}
    for other, data, said in (
        (nn.Sequential(nn.Linear(5, 3)), DATA, "a model with other parameters"),
        (model, Pairs(7), "a training on 11 rows, and train has 7"),
        (net(1), DATA, "is not what the training in .* ended with"),
    ):
        with pytest.raises(UserError, match=said):
            tdaexp.attribute(other, data, Pairs(2), "tracin", **keys)
    with pytest.raises(UserError, match=r"loss is the cross-entropy of an item's class; yours is another one"):
        keys["loss"] = lambda m, batch: class_losses(m, batch) ** 2
        tdaexp.attribute(model, DATA, Pairs(2), "explaind", **keys)
    with pytest.raises(UserError, match=r"tdaexp.Record records yours \(history=FOLDER\)"):
        tdaexp.attribute(model, DATA, Pairs(2), "explaind", loss=class_losses, cache=tmp_path)


def test_what_it_refuses(tmp_path):
    def run(model, reduce=lambda losses: losses.mean(), steps=3, clip=None, rate=0.1, batches=None):
        optimizer = torch.optim.SGD(model.parameters(), rate)
        batches = batches or loader()
        with Loop(model, optimizer, Record(tmp_path / "new", class_losses), loader=batches, steps=steps):
            for batch in batches:
                reduce(class_losses(model, batch)).backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()

    frozen = net()
    frozen.norm.requires_grad_(False)
    for make, said in (
        (lambda: run(net(), steps=None), "give steps=N"),
        (lambda: run(nn.Sequential(nn.Linear(5, 3), nn.Dropout())), "is dropout with p=0.5"),
        (lambda: run(frozen), "'norm.weight' is not trained"),
        (lambda: run(net().double()), "is torch.float64; a recording is of whole models in float32"),
    ):
        with pytest.raises(UserError, match=said):
            make()
        assert not (tmp_path / "new").exists()
    for number, (keys, said) in enumerate((
        ({"reduce": lambda losses: losses.sum()}, "is not that of the weighted sum of its rows' losses"),
        ({"clip": 0.01}, "clip no gradient"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=said):
            run(net(), **keys)
        (tmp_path / "new").rename(tmp_path / f"old {number}")
    with pytest.raises(UserError, match="and the first had 2, for which there is room"):
        run(net(), batches=DataLoader(DATA, batch_sampler=[[0, 1], [2, 3, 4]]))


def test_a_training_that_ended_early_is_said(tmp_path, caplog):
    model = net()
    optimizer, batches = torch.optim.SGD(model.parameters(), 0.1), loader()
    with Loop(model, optimizer, Record(tmp_path, class_losses), loader=batches, steps=9):
        for batch in batches:
            class_losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "the training ended after 3 of 9 updates" in caplog.text
    with pytest.raises(UserError, match="is missing"):
        Trajectory(tmp_path)
