import dataclasses
import json
import logging
import sys

import pytest
import torch

import tdaexp.training.callbacks as callbacks
import tdaexp.training.module as module
from tdaexp.data.examples import Example, Examples, collate
from tdaexp.data.tokenise import tokenise
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError
from tdaexp.training.batches import batch_indices, epoch_batch
from tdaexp.training.fit import fit, fit_fingerprint
from tdaexp.training.module import causal_loss, learning_rate_factor
from tdaexp.training.settings import FitSettings


def test_training_equals_a_loop_written_out(config, records, examples, settings, straight, weights, losses):
    model = config.start([record.text for record in records]).model.requires_grad_(True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(decayed, lr=1e-2, weight_decay=0.01)
    assert len(decayed) == len(list(model.parameters()))  # this architecture has no vectors
    curve = []
    for step in range(7):
        batch = batch_indices(step, seed=3, examples=10, batch_size=4)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * learning_rate_factor(step, steps=7, warmup=2)
        loss = causal_loss(model, collate([examples[int(i)] for i in batch], 2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    assert losses(straight) == pytest.approx(curve, rel=1e-6)
    trained = weights(straight)
    for name, value in model.state_dict().items():
        if name in trained:
            torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=1e-6)


def test_the_result_is_a_folder_in_hub_format(start, examples, straight, tmp_path):
    loaded = Pretrained(str(straight)).load()
    batch = collate(list(examples), 2)
    torch.testing.assert_close(causal_loss(loaded.model, batch), causal_loss(start.model, batch), rtol=0, atol=0)
    note = json.loads((straight / "training.json").read_text())
    assert len(note["loss"]) == 7 and note["loss"][-1] < note["loss"][0]
    assert note["settings"]["steps"] == 7 and note["settings"]["seed"] == 3
    assert loaded.model.config.use_cache
    assert not any(p.requires_grad for p in start.model.parameters()) and not start.model.training
    left = {path.name for path in straight.parent.iterdir() if not path.name.endswith(".lock")}
    assert left == {"fit.json", "model"}  # nothing else: no resume checkpoints, no lightning_logs


def test_it_is_silent_but_for_its_own_log(config, records, examples, settings, tmp_path, capfd, recwarn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(config.start([r.text for r in records]), examples, settings, folder=tmp_path / "fit", seed=0)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_a_finished_training_is_not_run_again(start, examples, settings, straight, kill_at):
    kill_at(0)
    assert fit(start, examples, settings, folder=straight.parent, seed=3) == straight


def test_a_folder_of_another_training_is_refused(config, records, examples, settings, straight):
    start = config.start([record.text for record in records])
    with pytest.raises(UserError, match="holds another training"):
        fit(start, examples, settings, folder=straight.parent, seed=4)
    (straight.parent / "fit.json").write_text("{")
    with pytest.raises(UserError, match=r"fit\.json: not readable"):
        fit(start, examples, settings, folder=straight.parent, seed=3)


def test_keep_all_keeps_models_that_load(config, records, examples, settings, tmp_path, straight, same, losses):
    settings = dataclasses.replace(settings, keep="all")
    start = config.start([record.text for record in records])
    result = fit(start, examples, settings, folder=tmp_path / "all", seed=3)
    folders = sorted(tmp_path.glob("all/checkpoints/*"))
    assert [folder.name for folder in folders] == ["step-2", "step-4", "step-6"]
    batch = batch_indices(4, seed=3, examples=10, batch_size=4)
    model = Pretrained(str(folders[1])).load().model
    after_four = causal_loss(model, collate([examples[int(i)] for i in batch], 2)).item()
    assert after_four == losses(result)[4]  # the weights after four steps are those that the fifth step saw
    assert same(result, straight)


def test_zero_steps_keep_the_initial_weights(start, examples, settings, tmp_path, weights, losses):
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    result = fit(start, examples, dataclasses.replace(settings, steps=0), folder=tmp_path / "f", seed=0)
    assert all(torch.equal(value, before[name]) for name, value in weights(result).items())
    assert losses(result) == []


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_other_precisions_train(start, examples, settings, precision, tmp_path, weights, losses):
    default = torch.get_default_dtype()
    result = fit(start, examples, settings, folder=tmp_path / "f", seed=0, precision=precision)
    stored = {value.dtype for value in weights(result).values()}
    assert stored == {torch.float64 if precision == "float64" else torch.float32}  # bfloat16 is mixed
    assert losses(result)[-1] < losses(result)[0]
    assert torch.get_default_dtype() is default


def test_dropout_is_off_whatever_the_start_says(start, examples, settings, tmp_path):
    drop = torch.nn.Dropout(0.5)
    start.model.model.register_module("drop", drop)
    start.model.model.embed_tokens.register_forward_hook(lambda module, args, output: drop(output))
    seen = []
    drop.register_forward_hook(lambda module, args, output: seen.append(torch.equal(args[0], output)))
    start.model.train()
    fit(start, examples, settings, folder=tmp_path / "f", seed=0)
    assert len(seen) == 7 and all(seen)


def test_a_loss_that_is_not_finite_names_the_step(start, examples, settings, tmp_path, monkeypatch):
    original = causal_loss
    count = iter(range(100))
    monkeypatch.setattr(
        module, "causal_loss", lambda *args: original(*args) * (float("nan") if next(count) == 5 else 1)
    )
    with pytest.raises(UserError, match=r"the loss is nan at step 5; lower trainer\.fit\.lr") as error:
        fit(start, examples, settings, folder=tmp_path / "f", seed=0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "f" / "model").exists()


def test_weights_that_diverge_in_the_last_step_are_not_saved(start, examples, settings, tmp_path):
    weight = start.model.get_input_embeddings().weight.requires_grad_(True)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="not finite"):
        fit(start, examples, dataclasses.replace(settings, steps=1), folder=tmp_path / "f", seed=0)
    assert not (tmp_path / "f" / "model").exists()


def test_examples_without_loss_are_refused(start, examples, settings, tmp_path):
    bare = Example("bare", examples[0].tokens, examples[0].loss_mask & False, "")
    with pytest.raises(UserError, match="example 'bare' has no token to predict"):
        fit(start, Examples([*examples, bare]), settings, folder=tmp_path / "f", seed=0)
    with pytest.raises(UserError, match="no example"):
        fit(start, Examples([]), settings, folder=tmp_path / "f", seed=0)


def test_a_bar_on_a_terminal_and_a_line_a_minute_elsewhere(
    config, records, examples, settings, tmp_path, monkeypatch, capsys, caplog
):
    def run(name):
        fit(config.start([r.text for r in records]), examples, settings, folder=tmp_path / name, seed=0)

    for name in ("SECONDS_TO_FIRST", "SECONDS_BETWEEN_LINES"):
        monkeypatch.setattr(callbacks, name, 0.0)
    with caplog.at_level(logging.INFO):
        run("plain")
    assert "training: step 3 of 7, loss" in caplog.text and capsys.readouterr().err == ""
    caplog.clear()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO):
        run("terminal")
    assert "step 3 of 7" not in caplog.text and "7 steps in" in caplog.text
    bar = capsys.readouterr().err
    assert "7/7" in bar and "loss" in bar


def test_fingerprint_follows_every_dependency_and_nothing_else(config, records, start, examples, settings):
    def of(start=start, examples=examples, seed=0, precision="float32", **keys):
        settings_ = dataclasses.replace(settings, **keys)
        return fit_fingerprint(start, examples, settings_, seed=seed, precision=precision)

    other = tokenise(records, start.tokenizer, template="plain", max_length=64, loss_on="all")
    different = [
        of(),
        of(start=dataclasses.replace(config, seed=9).start(["x"])),
        of(examples=other),
        of(examples=examples[::-1]),
        of(seed=1),
        of(precision="float64"),
        *(of(**{key: value}) for key, value in
          {"steps": 8, "batch_size": 5, "lr": 1.0, "warmup": 3, "weight_decay": 0.5, "clip": 0.0}.items()),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert of(checkpoint_every=1, keep="all") == of()


@pytest.mark.parametrize("kind", ["sgd", "rooted"])
def test_another_optimiser_schedule_and_cut_of_batches(start, examples, tmp_path, weights, config, records, kind):
    """Rooted: AdamW with an ε inside its root so large that its steps are momentum's, (1 − β) / √ε_r at a time."""
    own = {"optimizer": "sgd", "momentum": 0.9} if kind == "sgd" else {"betas": [0.9, 0.0], "eps": 0.0, "eps_root": 1e8}
    rate = 1e-2 if kind == "sgd" else 10.0
    settings = FitSettings(steps=5, batch_size=4, lr=rate, warmup=0, clip=0, weight_decay=0.01 / rate, decay="all",
                           schedule="constant", batches="epochs", **own)  # fmt: skip
    model = config.start([record.text for record in records]).model.requires_grad_(True)
    momenta = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    for step in range(5):
        indices = epoch_batch(step, seed=3, examples=10, batch_size=4)
        loss = causal_loss(model, collate([examples[int(i)] for i in indices], start.tokenizer.pad_token_id))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, one in model.named_parameters():
                decay = 0.01 / rate * one
                if kind == "sgd":
                    momenta[name].mul_(0.9).add_(one.grad + decay)
                    one.sub_(rate * momenta[name])
                else:
                    momenta[name].mul_(0.9).add_(0.1 * one.grad)
                    one.sub_(rate * (momenta[name] / (1 - 0.9 ** (step + 1)) / 1e4 + decay))
    found = weights(fit(start, examples, settings, folder=tmp_path / kind, seed=3))
    expected = dict(model.named_parameters())
    for name in found:
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-6, atol=1e-7)
