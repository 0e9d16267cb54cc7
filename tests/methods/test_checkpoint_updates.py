"""Simulated updates at checkpoints: against the training itself, in float64, by groups, after a kill, on bad lists."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tdaexp.building.checkpoints import Checkpoints
from tdaexp.data.multilingual import Multilingual
from tdaexp.methods.explaind import Explaind
from tdaexp.metrics.loss_change import loss_change
from tdaexp.models.components import component_map
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.scratch import Scratch, build_model
from tdaexp.models.tokenizer import train_tokenizer
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.paths import checkpoint_walk as checkpoint_run
from tdaexp.paths.checkpoint_step import Plan, _Checkpoint
from tdaexp.paths.checkpoint_walk import slabs_of
from tdaexp.problem import Problem
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.training.batches import batch_indices
from tdaexp.training.optimizer_state import FILE
from tdaexp.training.settings import FitSettings

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 20, "tie_word_embeddings": False}  # fmt: skip
FIT = FitSettings(steps=4, batch_size=16, lr=5e-3, warmup=2, schedule="constant", betas=[0.8, 0.9], weight_decay=0.3,
                  clip=0.1, checkpoint_every=1, keep="state")  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def config(cache, model=None, fit=FIT, precision="float32", **data):
    where = {"accelerator": "cpu", "strategy": "single", "precision": precision}
    trainer = SimpleNamespace(fit=fit, tokens_per_batch=600, cache_gb=1.0, **where)
    toy = Scratch("llama", SIZES, vocab_size=320, context=64, name="toy")
    dataset = Multilingual(**{"records": 120, "held_out": 24, "sentences": 2, "template": "plain", **data})
    return SimpleNamespace(model=model or toy, dataset=dataset, trainer=trainer, cache_dir=str(cache), seed=0)


def build(settings) -> Problem:
    return Checkpoints(settings).problem(Clock())


@pytest.fixture(scope="module")
def study(cache) -> Problem:
    return build(config(cache))


@pytest.fixture
def copied(study, tmp_path):
    """The checkpoints' folders, to be damaged."""
    source = study.history.snapshots[0].model.pretrained
    for step in range(1, 5):
        shutil.copytree(source.replace("step-1", f"step-{step}"), tmp_path / f"step-{step}")
    return tmp_path


def explained(study, cache, *keep, nodes=4, **changes):
    method = Explaind(keep=["step", *keep], output="loss", quadrature=Quadrature(nodes=nodes))
    return method.attribute(dataclasses.replace(study, cache=cache, **changes))


def listed(cache, *entries, **changes):
    base = Pretrained("of-the-checkpoints", checkpoints=[str(entry) for entry in entries], max_length=64, **changes)
    return build(config(cache, base))


def test_the_update_is_the_one_that_training_made(study):
    """From step 2, with the batch that training took there, to step 3: clipping, rate and decay too."""
    before, after = study.history.snapshots[1:3]
    slabs = slabs_of(before.model.load().model, study.map)
    plan = Plan(study, study.history, Quadrature(), {}, [], slabs)
    batch = batch_indices(2, seed=0, examples=len(study.train), batch_size=FIT.batch_size)
    one = _Checkpoint(plan, before.model.load().model.requires_grad_(), [int(place) for place in batch])
    step, numbers = one.simulate(before)
    assert numbers["clipped"] < 1 and numbers["lr"] == FIT.lr
    moved = 0.0
    for name, parameter in after.model.load().model.named_parameters():
        torch.testing.assert_close(step.end[name], parameter, rtol=1e-4, atol=2e-6)
        moved = max(moved, float((parameter - step.start[name]).abs().max()))
    assert moved > 1e-3


def test_the_sums_are_the_change_in_float64(cache, tmp_path):
    """Of GPT-2, whose layers compute in the type that they are given; Llama's norms are float32 whatever it is."""
    toy = Scratch("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, vocab_size=320, context=64, name="smooth")
    exact = in_float64(build(config(cache, toy)), tmp_path)
    assert loss_change(exact)["relative_error_max"] < 1e-8
    assert float(exact["change_norm"].min()) > 1e-3


def in_float64(study, cache):
    compute = dataclasses.replace(study.compute, dtype=torch.float64)
    return explained(study, cache, "component", nodes=8, compute=compute)


@pytest.mark.long
def test_parts_of_llama(study, tmp_path):
    exact = in_float64(study, tmp_path)
    assert dict(exact["influence"].sizes) == {"component": 17, "step": 4}
    assert loss_change(exact)["relative_error_max"] < 1e-6
    parts = sum(exact[name].sum("component") for name in ("influence", "regularisation", "first_moment"))
    np.testing.assert_allclose(parts, exact["explained"].sel(query="all"), rtol=1e-10)
    assert (abs(exact["first_moment"]).sum("component") > 0).all() and exact["stored"].all()
    plain = explained(study, tmp_path, "component")
    assert loss_change(plain)["relative_error"] < 1e-4
    np.testing.assert_allclose(plain["influence"], exact["influence"], rtol=2e-2, atol=1e-5)


def test_the_change_is_that_of_the_mean_loss(study, tmp_path):
    """Of all held-out tokens, by transformers' own loss."""
    found = explained(study, tmp_path, "component")
    loaded = study.history.snapshots[2].model.load().model
    total, count = 0.0, 0
    for example in study.queries:
        labels = torch.from_numpy(np.where(example.loss_mask, example.tokens, -100))[None]
        predicted = int((labels[:, 1:] >= 0).sum())
        ids = torch.from_numpy(example.tokens)[None]
        total += predicted * float(loaded(input_ids=ids, labels=labels).loss)
        count += predicted
    assert float(found["start"].sel(query="all", step=3)) == pytest.approx(-total / count, rel=1e-5)


@pytest.mark.long
def test_groups_sum_to_the_whole(study, tmp_path):
    whole = explained(study, tmp_path, "component")
    parts = explained(study, tmp_path, "component", "query", "train")
    assert set(parts["query"].values) == set(parts["train"].values) == {"en", "de", "fr", "es", "it", "pt"}
    assert parts["influence"].dims == ("query", "train", "component", "step")
    scale = float(abs(whole["influence"]).max())
    for name in ("influence", "regularisation", "first_moment"):
        rest = [axis for axis in ("query", "train") if axis in parts[name].dims]
        np.testing.assert_allclose(parts[name].sum(rest), whole[name], rtol=1e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(parts["change"].sum("query"), whole["change"].sum("query"), rtol=1e-3, atol=1e-6)
    only = explained(study, tmp_path, "train")
    np.testing.assert_allclose(only["influence"], parts["influence"].sum(["query", "component"]), rtol=1e-3, atol=1e-6)
    assert only["regularisation"].dims == ("step",)


def test_a_groups_share_is_that_of_its_own_gradient(study, tmp_path):
    """Without the texts of one language in the gradient, with the moments as they were."""
    history = dataclasses.replace(study.history, snapshots=study.history.snapshots[3:])
    one = dataclasses.replace(study, history=history)
    found = explained(one, tmp_path, "train", nodes=2)["influence"].sel(step=4)
    batch = history.batch(history.snapshots[0], one.seed)
    tokens = {name: 0.0 for name in found["train"].values}
    for place in batch:
        tokens[history.groups[place]] += one.train[int(place)].loss_mask[1:].sum()
    assert float(found.sum()) != 0 and all((float(found.sel(train=name)) != 0) == (n > 0) for name, n in tokens.items())


def test_a_killed_run_goes_on_to_the_same_bits(study, tmp_path, monkeypatch):
    straight = explained(study, tmp_path / "straight", "component")
    real, seen = checkpoint_run.decompose, []

    def stops(plan, snapshot, check):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(snapshot.step)
        return real(plan, snapshot, check)

    monkeypatch.setattr(checkpoint_run, "decompose", stops)
    with pytest.raises(KeyboardInterrupt):
        explained(study, tmp_path / "killed", "component")

    def goes_on(plan, snapshot, check):
        seen.append(snapshot.step)
        return real(plan, snapshot, check)

    monkeypatch.setattr(checkpoint_run, "decompose", goes_on)
    again = explained(study, tmp_path / "killed", "component")
    assert seen == [1, 2, 3, 4] and again.identical(straight)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", SIZES),
        ("olmo", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
                  "tie_word_embeddings": True}),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        ("gpt_neox", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}),
        ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    ],
)  # fmt: skip
def test_components_cover_every_parameter_once(architecture, sizes):
    model = build_model(architecture, sizes, train_tokenizer(["a b c"], 300), context=32, seed=0)
    components = component_map(model).complete()
    slabs = slabs_of(model, components)
    counts = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    totals = dict.fromkeys(range(len(components)), 0)
    for slab in slabs:
        place = counts[slab.parameter]
        rows = torch.arange(place.shape[slab.axis]) if slab.rows is None else slab.rows
        counts[slab.parameter] = place.index_add(slab.axis, rows, torch.ones_like(place.index_select(slab.axis, rows)))
        totals[slab.component] += place.index_select(slab.axis, rows).numel()
    assert all((count == 1).all() for count in counts.values())
    assert list(totals.values()) == components.sizes.tolist() and components.sizes.sum() == model.num_parameters()


def test_a_folder_of_checkpoints_stands_for_all(copied, cache):
    found = listed(cache, copied).history.snapshots
    assert [one.step for one in found] == [1, 2, 3, 4] and all(one.state for one in found)


def test_without_states_a_fresh_optimiser_may_be_assumed(copied, cache, tmp_path, caplog):
    for file in copied.glob(f"*/{FILE}"):
        file.unlink()
    with pytest.raises(UserError, match=r"step-1' has no state of the optimiser \(optimizer.safetensors\).*=fresh"):
        listed(cache, copied)
    fresh = listed(cache, copied / "step-2", copied / "step-4", missing_state="fresh")
    with caplog.at_level(logging.WARNING):
        found = explained(fresh, tmp_path, "component")
    assert "2 of 2 checkpoints hold no state" in caplog.text and not found["stored"].any()
    assert not found["first_moment"].any() and float(abs(found["influence"]).sum()) > 0
    assert list(found["step"].values) == [2, 4]


def test_bad_lists_are_refused(copied, cache):
    one, two, three = (copied / f"step-{step}" for step in (1, 2, 3))
    with pytest.raises(UserError, match=r"step-1' \(step 1\) stands behind '.*step-2' \(step 2\); .*oldest first"):
        listed(cache, two, one)
    with pytest.raises(UserError, match="stands behind"):
        listed(cache, one, one)
    with pytest.raises(UserError, match=r"model.checkpoints: .*step-9: no such folder"):
        listed(cache, one, copied / "step-9")
    with pytest.raises(UserError, match="names none"):
        listed(cache)
    (copied / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint in hub format"):
        listed(cache, copied / "empty")
    text = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**text, "hidden_size": 32}))
    with pytest.raises(UserError, match=r"another architecture than '.*step-1': hidden_size is 32, not 16"):
        listed(cache, one, two)
    words = json.loads((three / "tokenizer.json").read_text())
    words["model"]["merges"] = words["model"]["merges"][:-1]
    (three / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"another tokenizer than '.*step-1'"):
        listed(cache, one, three)


def test_settings_that_cannot_be_are_refused(study, cache, tmp_path):
    with pytest.raises(UserError, match=r"output=logits.*only method.output=loss"):
        Explaind(keep=["step"]).attribute(study)
    with pytest.raises(UserError, match="one output, the loss"):
        Explaind(keep=["step", "output"], output="loss").attribute(study)
    many = dataclasses.replace(FIT, batch_size=200)
    with pytest.raises(UserError, match=r"trainer.fit.batch_size=200: there are 96 records"):
        explained(study, tmp_path, history=dataclasses.replace(study.history, fit=many))
    with pytest.raises(UserError, match=r"dataset.held_out: .*there are none"):
        build(config(cache, held_out=0))
    with pytest.raises(UserError, match="bfloat16: rounds away"):
        build(config(cache, precision="bfloat16"))
    with pytest.raises(UserError, match=r"keep=all: method=explaind needs .*keep=state.*record=1"):
        build(config(cache, fit=dataclasses.replace(FIT, keep="all")))
    with pytest.raises(UserError, match="checkpoint_every=9: the training of 4 steps left no checkpoint"):
        build(config(cache, fit=dataclasses.replace(FIT, checkpoint_every=9)))


def test_a_state_of_another_model_is_refused(copied, cache, tmp_path):
    state = load_file(copied / "step-1" / FILE)
    assert state["exp_avg/lm_head.weight"].shape[1] == 16
    (copied / "step-1" / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="no readable state of AdamW"):
        listed(cache, copied)
