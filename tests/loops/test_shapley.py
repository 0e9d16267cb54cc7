"""In-run data Shapley against autograd, one row and one update at a time, in every kind of loop."""

from __future__ import annotations

import multiprocessing
import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from small import QUERIES, TEXTS, Module, Pairs, class_losses, items, lightning_trainer, loader, net, new_model, trainer
from spy import Spy, dot, gradient
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import tdaexp
from tdaexp.loops.lightning import LightningCallback
from tdaexp.loops.loop import Loop
from tdaexp.loops.shapley import InRunShapley
from tdaexp.loops.transformers import TransformersCallback
from tdaexp.runtime.errors import UserError

ASKED = Pairs(3, seed=9)
COMPONENTS = {
    "first": ("first.weight", "first.bias"),
    "norms": ("norm.weight", "norm.bias"),
    "last": ("last.weight", "last.bias"),
}


def row_of(inputs: torch.Tensor) -> list[int]:
    """Places in the training set of what the model was given."""
    known = Pairs(11).inputs
    return [int((known.to(one) - one).abs().sum(1).argmin()) for one in inputs]


def own_gradient(model, weights, data, row: int):
    """Autograd's gradient of one item's loss."""
    one = (data.inputs[row : row + 1], data.targets[row : row + 1])
    return gradient(model, weights, lambda m: class_losses(m, one).sum())


def wanted(model, updates, data, world: int = 1, every: int = 1) -> np.ndarray:
    """Σ η ⟨share of the row, gradient of the query⟩ [query, row, component], by autograd."""
    found = np.zeros((len(ASKED), len(data), len(COMPONENTS)))
    for update in updates[::every]:
        asked = [own_gradient(model, update.weights, ASKED, q) for q in range(len(ASKED))]
        for inputs in update.passes:
            rows = row_of(inputs)
            for row in rows:
                own = own_gradient(model, update.weights, data, row)
                share = every * update.rate / (len(rows) * len(update.passes) * world)
                for q, query in enumerate(asked):
                    found[q, row] += [share * dot(own, query, names) for names in COMPONENTS.values()]
    return found


def answer(folder):
    """What was left in the folder [query, row, component]."""
    found = tdaexp.load(folder).dataset
    assert list(found["component"].values) == list(COMPONENTS)
    assert list(found["train"].values[0]) == [str(row) for row in range(found.sizes["candidate"])]
    return found["influence"].values


def plain_loop(model, optimizer, batches, observer, epochs=2, accumulate=1, scaler=None, autocast=nullcontext):
    """A loop as anybody would write it."""
    model.train()
    with Loop(model, optimizer, observer, loader=batches):
        for _ in range(epochs):
            for number, batch in enumerate(batches, start=1):
                with autocast():
                    loss = class_losses(model, batch).mean() / accumulate
                (loss if scaler is None else scaler.scale(loss)).backward()
                with torch.no_grad():  # what somebody looks at meanwhile is no pass
                    model(batch[0])
                if number % accumulate == 0:
                    optimizer.step() if scaler is None else scaler.step(optimizer)
                    if scaler is not None:
                        scaler.update()
                    optimizer.zero_grad()


@pytest.mark.parametrize("checkpointing", ["", "reentrant", "plain"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loop_of_ones_own(tmp_path, checkpointing, accumulate):
    model = net(checkpointing=checkpointing).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    spy, batches = Spy(model, optimizer), loader()
    plain_loop(model, optimizer, batches, InRunShapley(tmp_path, ASKED, loss=class_losses), accumulate=accumulate)
    assert len(spy.updates) == 2 * (3 // accumulate) and len(spy.updates[-1].passes) == accumulate
    np.testing.assert_allclose(answer(tmp_path), wanted(model, spy.updates, Pairs(11)), rtol=1e-6, atol=1e-12)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in (model.first, model.norm, model.last)
    )


def test_a_training_is_the_same_with_and_without(tmp_path):
    """Same batches, same dropout, same weights."""
    ends = []
    for watched in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
        optimizer = torch.optim.AdamW(model.parameters(), 0.1)
        batches = DataLoader(Pairs(11), 4, shuffle=True)
        observer = InRunShapley(tmp_path, ASKED, loss=class_losses) if watched else []
        with Loop(model, optimizer, observer, loader=batches):
            for _ in range(2):
                for batch in batches:
                    optimizer.zero_grad()
                    class_losses(model, batch).mean().backward()
                    optimizer.step()
        ends.append([one.detach() for one in model.parameters()] + [torch.rand(1)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_that_the_scaler_leaves_out_counts_nowhere(tmp_path, fused):
    """A fused optimiser is called all the same, takes the scale off itself, and leaves its parameters as they are."""
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    spy = Spy(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e37, backoff_factor=1e-33, growth_interval=10**6)
    model.first.weight.register_hook(lambda grad: torch.where(grad.abs() > 1e30, torch.inf, grad))
    plain_loop(model, optimizer, loader(), InRunShapley(tmp_path, ASKED, loss=class_losses), scaler=scaler)
    assert len(spy.updates) == 5 + fused  # of six, the first was left out
    if fused:
        spy.updates = spy.updates[1:]
    else:
        spy.updates[0].passes = spy.updates[0].passes[1:]
    np.testing.assert_allclose(answer(tmp_path), wanted(model, spy.updates, Pairs(11)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_with_a_scaler(tmp_path, dtype):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spy = Spy(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    plain_loop(model, optimizer, loader(), InRunShapley(tmp_path, ASKED, loss=class_losses), scaler=scaler,
               autocast=partial(torch.autocast, "cpu", dtype))  # fmt: skip
    exact = wanted(model, spy.updates, Pairs(11))
    assert np.abs(answer(tmp_path) - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("scaled", [False, True])
def test_in_lightning(tmp_path, scaled):
    """Batches are accumulated two at a time; the last of an epoch stands alone."""
    model = net().double()
    observer = InRunShapley(tmp_path, ASKED, loss=class_losses)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scaled else []
    if scaled:
        plugins[0].autocast_context_manager = nullcontext
    callback = LightningCallback(observer, model="net")
    run = lightning_trainer(callback, accumulate_grad_batches=2, max_steps=4, plugins=plugins)
    module = Module(model)
    spies = []
    module.on_train_start = lambda: spies.append(Spy(model, run.optimizers[0]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        run.fit(module, DataLoader(Pairs(11), 4, shuffle=True))
    assert [len(one.passes) for one in spies[0].updates] == [2, 1, 2, 1]
    found = answer(tmp_path)
    for update in spies[0].updates:  # a lone batch is divided by two as well
        update.rate *= len(update.passes) / 2
    np.testing.assert_allclose(found, wanted(model, spies[0].updates, Pairs(11)), rtol=1e-6, atol=1e-12)


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = net().double()
    whole = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spy = Spy(model, optimizer)
    data = Pairs(11)
    batches = DataLoader(data, 3, sampler=DistributedSampler(data, 2, rank, seed=4))
    with Loop(whole, optimizer, InRunShapley(f"{folder}/answer", ASKED, loss=class_losses), loader=batches):
        for _ in range(2):
            for number, batch in enumerate(batches):
                with whole.no_sync() if number % 2 == 0 else nullcontext():
                    (class_losses(whole, batch).mean() / 2).backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
    torch.save(wanted(model, spy.updates, data, world=2), f"{folder}/wanted-{rank}")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    """Each has its share of a batch, accumulated twice; gradients are averaged over both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = [
            multiprocessing.get_context("fork").Process(target=_process, args=(rank, str(tmp_path)))
            for rank in range(2)
        ]
        for one in every:
            one.start()
    for one in every:
        one.join()
        assert one.exitcode == 0
    parts = [torch.load(tmp_path / f"wanted-{rank}", weights_only=False) for rank in range(2)]
    np.testing.assert_allclose(answer(tmp_path / "answer"), sum(parts), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_in_transformers_trainer(tmp_path, reentrant):
    """Two batches an update, activations recomputed; a row's share is its tokens' losses over the update's tokens."""
    model, tokenizer = new_model(tie_word_embeddings=True)
    queries = items(tokenizer, QUERIES)
    one = trainer(
        model, tokenizer, tmp_path / "out", TransformersCallback(InRunShapley(tmp_path / "kept", queries)),
        gradient_accumulation_steps=2, max_steps=3, optim="adamw_torch",
    )  # fmt: skip
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    one.create_optimizer()
    spy = Spy(model, one.optimizer)
    one.train()
    data = items(tokenizer, TEXTS)
    rows = {tuple(item["input_ids"]): row for row, item in enumerate(data)}
    found = np.zeros((len(queries), len(data)))

    def total(m, ids, mean):
        ids = torch.tensor([ids])
        losses = nn.functional.cross_entropy(m(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        return losses.mean() if mean else losses.sum()

    for update in spy.updates:
        asked = [gradient(model, update.weights, lambda m, q=q: total(m, q["input_ids"], True)) for q in queries]
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in update.passes)
        for batch in update.passes:
            for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                ids = tuple(ids[real.bool()].tolist())
                own = gradient(model, update.weights, lambda m, ids=ids: total(m, ids, False))
                for q, query in enumerate(asked):
                    found[q, rows[ids]] += update.rate / tokens * dot(own, query, tuple(own))
    scores = tdaexp.load(tmp_path / "kept").dataset["influence"].sum("component").values
    assert len(spy.updates) == 3
    np.testing.assert_allclose(scores, found, rtol=2e-3, atol=1e-5 * np.abs(found).max())


def test_every_second_update_counts_twice(tmp_path):
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spy = Spy(model, optimizer)
    plain_loop(model, optimizer, loader(), InRunShapley(tmp_path, ASKED, loss=class_losses, every=2))
    np.testing.assert_allclose(answer(tmp_path), wanted(model, spy.updates, Pairs(11), every=2), rtol=1e-6, atol=1e-12)


def test_first_order_explains_the_fall_of_the_queries_loss_where_steps_are_small(tmp_path):
    model = net().double()
    plain_loop(
        model,
        torch.optim.SGD(model.parameters(), 1e-3),
        loader(),
        InRunShapley(tmp_path, ASKED, loss=class_losses),
        epochs=4,
    )
    found = tdaexp.load(tmp_path).dataset
    np.testing.assert_allclose(found["explained"].values, found["change"].values, rtol=2e-2)


class Twice(nn.Module):
    """A weight that is used in a second place, past its layer."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(5, 5)
        self.two = nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = self.one(inputs)
        if self.training:
            hidden = hidden + nn.functional.linear(inputs, self.one.weight)
        return self.two(hidden)


def test_what_it_refuses(tmp_path):
    model = net()

    def run(model, batches=None, rate=0.1, times=1, **keys):
        optimizer = torch.optim.SGD(model.parameters(), rate)
        keys = {"loss": class_losses, **keys}
        batches = loader() if batches is None else batches
        with Loop(
            model, optimizer, InRunShapley(tmp_path / "new", ASKED, **keys), loader=batches, start=keys.pop("start", 0)
        ):
            for batch in batches:
                for _ in range(times):
                    class_losses(model, batch).mean().backward()
                optimizer.step()
                optimizer.zero_grad()

    with pytest.raises(UserError, match=r"component 'one' do not sum to the gradient .* used elsewhere too"):
        run(Twice())
    with pytest.raises(UserError, match=r"more often with derivatives than the loader gave batches"):
        run(model, times=4)
    with pytest.raises(UserError, match=r"no component 'lsat'.*last|unknown component 'lsat'|lsat"):
        run(model, components=["lsat"])
    with pytest.raises(UserError, match=r"give loss=FUNCTION"):
        run(model, loss=None)
    with pytest.raises(UserError, match=r"the score of row \d+ is not finite"):
        run(net(), rate=1e30)
    with pytest.raises(UserError, match=r"the DataLoader makes no batches itself"):
        run(model, DataLoader(Pairs(4), batch_size=None))
    with pytest.raises(UserError, match=r"queries holds no item"):
        InRunShapley(tmp_path, [])
    with pytest.raises(UserError, match=r"goes on from step 3"):
        Loop(model, torch.optim.SGD(model.parameters()), InRunShapley(tmp_path / "new", ASKED, loss=class_losses),
             loader=loader(), start=3).__enter__()  # fmt: skip
    with pytest.raises(UserError, match=r"give it \(loader=LOADER\)"):
        Loop(model, torch.optim.SGD(model.parameters()), InRunShapley(tmp_path / "new", ASKED)).__enter__()
    assert not (tmp_path / "new").exists()


def test_clipping_shortens_every_share(tmp_path):
    model = net().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spy, batches, lengths = Spy(model, optimizer), loader(), []
    with Loop(model, optimizer, InRunShapley(tmp_path, ASKED, loss=class_losses), loader=batches):
        for batch in batches:
            class_losses(model, batch).mean().backward()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2))
            lengths.append(min(1, 0.2 / (norm + 1e-6)))
            optimizer.step()
            optimizer.zero_grad()
    assert max(lengths) < 1
    for update, one in zip(spy.updates, lengths, strict=True):
        update.rate *= one
    np.testing.assert_allclose(answer(tmp_path), wanted(model, spy.updates, Pairs(11)), rtol=1e-6, atol=1e-12)
