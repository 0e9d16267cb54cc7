"""`import tdaexp`: the values of the commands, from what is in memory, in a program that is left as it was."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from commands import only
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers.utils import logging as transformers_logging

import tdaexp
from tdaexp import influence
from tdaexp.gradients.projection import make_sketch
from tdaexp.methods.dot import Dot
from tdaexp.models.given import given
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.tokenizer import train_tokenizer
from tdaexp.runtime.errors import UserError

TRAIN = [{"prompt": f"Where does river {k} run?", "completion": f"past town {7 * k % 5}"} for k in range(8)]
QUERIES = [{"prompt": f"Which town has river {k}?", "completion": f"town {7 * k % 5}"} for k in range(3)]
PLAIN = {"template": "plain"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A Llama of two layers in hub format."""
    place = tmp_path_factory.mktemp("model") / "llama"
    tokenizer = train_tokenizer([" ".join(row.values()) for row in [*TRAIN, *QUERIES]], 300)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=len(tokenizer),
        max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, attention_dropout=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def model(folder) -> nn.Module:
    with quiet_transformers():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, str]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


COLUMNS = {"prompt_column": "prompt", "completion_column": "completion"}


@pytest.mark.parametrize("method", ["ekfac", "trak", "repsim"])
def test_call_and_command_give_the_same_from_one_cache(commands, here, folder, model, method):
    train, queries = write("train.jsonl", TRAIN), write("questions.jsonl", QUERIES)
    setting = {"trak": {"dimensions": 4}, "ekfac": {"damping": 0.01}, "repsim": {"pooling": "mean"}}[method]
    ((key, value),) = setting.items()
    data = [f"dataset.path={train}", f"dataset.query_path={queries}", "dataset.template=plain"]
    data += [f"dataset.{name}={column}" for name, column in COLUMNS.items()]
    commands.done(
        *("attribute", "model=eurollm1b7", f"model.pretrained={folder}", "model.expected_components=null"),
        *("dataset=text", *data, "candidates=all"),
        *(f"method={method}", f"method.{key}={value}", "metric.plots=false"),
    )
    wanted = influence.load(only("outputs/attribute/*") / "influence.zarr").load()
    entries = set(commands.cache.rglob("*"))
    from_files = tdaexp.attribute(
        model, train, queries, method, cache=commands.cache, dataset={**PLAIN, **COLUMNS}, **setting
    )
    assert from_files.dataset.drop_attrs().identical(wanted.drop_attrs())
    assert from_files.dataset.attrs["study"] == wanted.attrs["study"]
    assert from_files.dataset.attrs["config"]["method"] == wanted.attrs["config"]["method"]
    assert not {path for path in set(commands.cache.rglob("*")) - entries if path.is_dir()}  # nothing was computed anew
    from_rows = tdaexp.attribute(model, TRAIN, QUERIES, method, cache="fresh", dataset=PLAIN, **setting)
    np.testing.assert_array_equal(from_rows.dataset["influence"].values, wanted["influence"].values)
    np.testing.assert_array_equal(from_rows.dataset["train"].values, wanted["train"].values)


@pytest.mark.parametrize(
    "rows",
    [
        lambda rows: [(row["prompt"], row["completion"]) for row in rows],
        pd.DataFrame,
        datasets.Dataset.from_list,
        lambda rows: write("rows.jsonl", rows),
        lambda rows: tuple(rows),
    ],
)
def test_rows_in_whatever_holds_them(here, model, rows):
    first = tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN)
    second = tdaexp.attribute(model, rows(TRAIN), QUERIES, "dot", dataset=PLAIN)
    assert second.dataset.drop_attrs().identical(first.dataset.drop_attrs())
    assert second.texts == first.texts


def test_every_query_that_is_handed_over_is_answered(here, model):
    asked = [*QUERIES, *QUERIES]
    quick = {"preconditioner": "none", "iterations": 1, "examples": 2, "components": ["layers.0.mlp.up"]}
    answer = tdaexp.attribute(model, TRAIN[:2], asked, "cg", dataset=PLAIN, **quick)
    assert answer.dataset["influence"].values.any((1, 2)).sum() == len(asked) > 4


def test_bare_strings_are_all_completion(here, model):
    answer = tdaexp.attribute(model, [" ".join(row.values()) for row in TRAIN], ["past town 3"], "dot")
    assert answer.dataset.sizes["query"] == 1 and np.isfinite(answer.dataset["influence"].values).all()


def test_an_answer_is_shown_kept_and_read_again(commands, here, model):
    answer = tdaexp.attribute(model, TRAIN, QUERIES, "ekfac", dataset=PLAIN)
    assert answer.dataset["influence"].dims == ("query", "candidate", "component")
    assert "ekfac" in repr(answer) and "past town" in answer._repr_html_()
    saved = answer.save("runs/mine")
    assert {"influence.zarr", "report.html", "metrics.json", "config.yaml"} <= {one.name for one in saved.iterdir()}
    again = tdaexp.load("runs/mine")
    assert again.dataset.identical(answer.dataset) and again.texts == answer.texts and again.config == answer.config
    pd.testing.assert_frame_equal(again.top(2), answer.top(2))
    trust = answer.trust.set_index("check")["verdict"]
    assert trust["self_check"] == trust["batch_drift"] == trust["precision_drift"] == "good"
    pd.testing.assert_frame_equal(again.trust, answer.trust)
    assert again.save("runs/copy") and tdaexp.load("runs/copy").dataset.identical(answer.dataset)
    answer.save("runs/mine")  # anew
    commands.done("evaluate", "runs=[runs/mine]", "metric.plots=false")
    Path("runs/other").mkdir()
    Path("runs/other/notes").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        answer.save("runs/other")
    with pytest.raises(UserError, match="no such influence store"):
        tdaexp.load("runs/none")


def test_rows_of_a_saved_answer_are_dropped_where_they_are_in_a_file(commands, here, model):
    tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN).save("runs/memory")
    assert (here / "runs/memory/rows.csv").exists()
    line = commands.refused("evaluate", "runs=[runs/memory]", "drop=1")
    assert "its training rows were in memory, so there is no file to write again" in line
    file = write("train.jsonl", TRAIN)
    tdaexp.attribute(model, file, QUERIES, "dot", dataset=PLAIN).save("runs/file")
    commands.done("evaluate", "runs=[runs/file]", "drop=1", "drop_by=helpful", "hydra.run.dir=dropped")
    kept = Path("dropped/train-kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == len(TRAIN) - 1 and set(kept) < set(Path(file).read_text(encoding="utf-8").splitlines())


def test_what_the_command_wrote_is_read(commands, here):
    from commands import TINY

    commands.done("attribute", *TINY, "method=bm25", "metric.plots=false", "dataset.query_sets=[paraphrased]")
    answer = tdaexp.load(only("outputs/attribute/*"))
    assert len(answer.top(1)) and answer.config["method"]["_target_"].endswith("BM25")


def test_self_influence_is_that_of_the_command(commands, here, folder, model):
    train = write("train.jsonl", TRAIN)
    data = [f"dataset.path={train}", "dataset.template=plain", "dataset.query_sets=[]", "candidates=all"]
    data += [f"dataset.{name}={column}" for name, column in COLUMNS.items()]
    options = [
        *("model=eurollm1b7", f"model.pretrained={folder}", "model.expected_components=null", "dataset=text"),
        *(*data, "method=ekfac", "self_influence=true", "hydra.run.dir=itself"),
    ]
    assert "self-influence: " in commands.done("attribute", *options)
    wanted = influence.load(Path("itself/self_influence.zarr"))
    assert not Path("itself/influence.zarr").exists()
    assert "finished before, skipped" in commands.done("attribute", *options, "resume=true")
    answer = tdaexp.self_influence(model, TRAIN, "ekfac", dataset=PLAIN, cache=commands.cache)
    assert answer.dataset.drop_attrs().identical(wanted.drop_attrs())
    assert answer.dataset["self_influence"].dims == ("train", "component")
    total = answer.dataset["self_influence"].sum("component")
    table = pd.read_csv("itself/suspects.csv")
    assert table["row"].astype(str).tolist() == total["train"].values[np.argsort(-total.values)].tolist()
    assert answer.top(3)["row"].tolist() == table["row"].astype(str).tolist()[:3]
    assert "past town" in answer._repr_html_() and "SelfInfluence of ekfac" in repr(answer)
    answer.save("runs/itself")
    assert tdaexp.load("runs/itself").dataset.identical(answer.dataset)
    assert tdaexp.load("itself").texts == answer.texts
    chunk = next(one for one in Path("itself/self_influence.zarr/self_influence").iterdir() if one.name[0] != ".")
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    assert "finished before" not in commands.done("attribute", *options, "resume=true")


def test_self_influence_beside_an_answer(commands, here, folder, model):
    from commands import TINY

    options = (*TINY, "method=dot", "dataset.query_sets=[paraphrased]", "metric.plots=false", "self_influence=true")
    commands.done("attribute", *options)
    found = tdaexp.load(only("outputs/attribute/*"))
    assert found.kept.itself.sizes["train"] == len(pd.read_csv(only("outputs/attribute/*/suspects.csv")))
    assert "says nothing; take ekfac" in commands.refused("attribute", *options, "method=bm25")


def test_a_mislabelled_row_comes_first(here):
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(20, 3) + 3, torch.randn(20, 3) - 3]).double()
    labels = torch.tensor([0] * 20 + [1] * 20)
    labels[7] = 1
    module = nn.Linear(3, 2).double()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimiser.step()
    found = tdaexp.self_influence(module, TensorDataset(inputs, labels), "dot", loss=loss)
    first = found.top(1)
    assert first["row"].tolist() == ["7"]
    with pytest.raises(UserError, match="self_influence: of method=random an example's score for itself says nothing"):
        tdaexp.self_influence(module, TensorDataset(inputs, labels), "random", loss=loss)


# --- a model within another object


def adapted(model: nn.Module, kind: str = "LoraConfig", **settings) -> nn.Module:
    """The model in a PeftModel, with an adapter by peft's config class `kind`."""
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # about other versions of its peers
        torch.manual_seed(0)
        return peft.get_peft_model(model, getattr(peft, kind)(**settings))


def lora(model: nn.Module) -> nn.Module:
    return adapted(model, r=2, target_modules=["q_proj"], init_lora_weights=False)


def compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.compile(model)


@pytest.mark.parametrize("wrap", [compiled, lora, lambda model: compiled(lora(model))])
def test_the_model_within_is_explained(here, model, wrap):
    outer = wrap(model)
    found = tdaexp.attribute(outer, TRAIN, QUERIES, "dot", dataset=PLAIN)
    wanted = tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN, cache="fresh")
    assert found.dataset.drop_attrs().identical(wanted.dataset.drop_attrs())
    assert ("layers.0.attn.q.lora_A" in found.dataset["component"].values.tolist()) == (wrap is not compiled)


def test_a_compiled_module_is_that_which_was_compiled(here, digits):
    module, data = digits
    wanted = tdaexp.attribute(module, data, data, "dot", loss=loss)
    found = tdaexp.attribute(compiled(module), data, data, "dot", loss=loss, cache="fresh")
    assert found.dataset.drop_attrs().identical(wanted.dataset.drop_attrs())


def test_what_the_object_around_adds_is_not_left_out_in_silence(here, model):
    outer = lora(model)
    hook = outer.register_forward_hook(lambda layer, args, output: None)
    with pytest.raises(UserError, match="hooks on a PeftModel would not run"):
        tdaexp.attribute(outer, TRAIN, QUERIES, "dot", dataset=PLAIN)
    hook.remove()
    prompts = adapted(outer.unload(), "PromptTuningConfig", num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="with learned prompts is more than its model"):
        tdaexp.attribute(prompts, TRAIN, QUERIES, "dot", dataset=PLAIN)


# --- a classifier of texts

LABELLED = [{"text": f"Where does river {k} run?", "label": k % 3} for k in range(5)]


def classifier(kind: type, config, **sizes: int) -> nn.Module:
    """Of three classes, in double precision."""
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        return kind(type(config)(**{**config.to_dict(), **sizes, "num_labels": 3})).double().eval()


def test_a_sequence_classifiers_dot_products_are_autograds(here, model, tokenizer):
    judge = classifier(transformers.LlamaForSequenceClassification, model.config)

    def gradient(row) -> torch.Tensor:
        logits = judge(**tokenizer(row["text"], return_tensors="pt")).logits
        entropy = nn.functional.cross_entropy(logits, torch.tensor([row["label"]]))
        return torch.cat([one.flatten() for one in torch.autograd.grad(entropy, [*judge.parameters()])])

    answer = tdaexp.attribute(judge, LABELLED, LABELLED[1:3], "dot", tokenizer=tokenizer, part="all")
    scores, places = influence.scores(answer.dataset).values, answer.dataset["train"].values.astype(int)
    wanted = [[float(gradient(LABELLED[1 + k]) @ gradient(LABELLED[n])) for n in row] for k, row in enumerate(places)]
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)
    pairs = [(row["text"], f"LABEL_{row['label']}") for row in LABELLED]
    again = tdaexp.attribute(judge, pairs, pairs[1:3], "dot", tokenizer=tokenizer, part="all")
    assert again.dataset.drop_attrs().identical(answer.dataset.drop_attrs())


def test_a_classifier_that_gives_a_number_or_sees_both_sides_is_refused(here, model, tokenizer):
    judge = classifier(transformers.LlamaForSequenceClassification, model.config)
    with pytest.raises(UserError, match="unknown class '7'; choices: LABEL_0, LABEL_1, LABEL_2"):
        tdaexp.attribute(judge, [{"text": "a river", "label": 7}], LABELLED, "dot", tokenizer=tokenizer)
    judge.config.problem_type = "regression"
    with pytest.raises(UserError, match="model: gives numbers or several labels at once"):
        tdaexp.attribute(judge, LABELLED, LABELLED, "dot", tokenizer=tokenizer)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    both = classifier(transformers.BertForSequenceClassification, transformers.BertConfig(), **sizes, vocab_size=400)
    with pytest.raises(UserError, match="a bert model is an encoder, it sees both sides"):
        tdaexp.attribute(both, LABELLED, LABELLED, "dot", tokenizer=tokenizer)


# --- what is in the identity


def test_a_changed_model_is_another_one(here, model):
    """None of this is in the folder that the model says it came from."""

    def scores() -> np.ndarray:
        return tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN).dataset["influence"].values

    seen = [scores()]
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    seen.append(scores())
    model.model.layers[1].self_attn.scaling *= 2
    seen.append(scores())
    hook = model.model.layers[0].mlp.register_forward_hook(lambda layer, args, output: 2 * output)
    seen.append(scores())
    hook.remove()
    assert len({one.tobytes() for one in seen}) == len(seen)
    np.testing.assert_array_equal(scores(), seen[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_as_it_is_in_its_folder_has_the_folders_name(folder, dtype):
    with quiet_transformers():
        read = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    wanted = Pretrained(str(folder)).start_fingerprint()
    assert given(read, None, "x").start_fingerprint() == wanted
    read.model.rotary_emb.inv_freq *= 2  # in no file
    assert given(read, None, "x").start_fingerprint() != wanted


def test_a_model_of_two_types_is_not_that_of_its_folder(folder, model):
    wanted = Pretrained(str(folder)).start_fingerprint()
    with torch.no_grad():  # of values that both types have
        for value in model.parameters():
            value.copy_(value.bfloat16())
    rounded = folder.parent / "rounded"
    with quiet_transformers():
        model.save_pretrained(rounded)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(rounded)
        model = transformers.AutoModelForCausalLM.from_pretrained(rounded)
    assert given(model, None, "x").start_fingerprint() == Pretrained(str(rounded)).start_fingerprint() != wanted
    model.model.layers[0].mlp.bfloat16()
    assert given(model, None, "x").start_fingerprint() != Pretrained(str(rounded)).start_fingerprint()


def test_a_model_tied_in_memory_is_not_that_of_its_folder(folder, model):
    first = model.model.layers[0].mlp
    with torch.no_grad():
        first.up_proj.weight.copy_(first.gate_proj.weight)
    alike = folder.parent / "alike"
    with quiet_transformers():
        model.save_pretrained(alike)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(alike)
        model = transformers.AutoModelForCausalLM.from_pretrained(alike)
    assert given(model, None, "x").start_fingerprint() == Pretrained(str(alike)).start_fingerprint()
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[0].mlp.gate_proj.weight
    assert given(model, None, "x").start_fingerprint() != Pretrained(str(alike)).start_fingerprint()


def test_another_tokenizer_is_another_question(here, model, tokenizer):
    first = tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN)
    tokenizer.add_tokens(["river"])
    model.resize_token_embeddings(len(tokenizer))
    second = tdaexp.attribute(model, TRAIN, QUERIES, "dot", tokenizer=tokenizer, dataset=PLAIN)
    assert first.dataset.attrs["study"] != second.dataset.attrs["study"]


# --- the program around it


def state(model: nn.Module) -> dict[str, object]:
    """All that a call could leave behind."""
    return {
        "random": random.getstate(),
        "numpy": [part.tobytes() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "dtype": torch.get_default_dtype(),
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
        "grad": [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_num_threads()],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "logs": [
            (one.handlers[:], one.level, one.propagate) for one in (logging.getLogger(), logging.getLogger("tdaexp"))
        ],
        "transformers": [transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()],
        "environment": dict(os.environ),
        "modes": [module.training for module in model.modules()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if one.grad is None else one.grad.numpy().tobytes() for one in model.parameters()],
        "values": [parameter.detach().numpy().tobytes() for parameter in model.parameters()],
        "hooks": [
            [len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)]
            for module in model.modules()
        ],
        "arguments": sys.argv[:],
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_program_is_left_as_it_was(here, model, fails, monkeypatch):
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    model.model.embed_tokens.weight.requires_grad_(False)
    torch.set_default_dtype(torch.float64)
    transformers_logging.set_verbosity_info()
    try:
        before = state(model)
        if fails:
            monkeypatch.setattr(Dot, "attribute", lambda *_: (random.random(), torch.rand(1), 1 / 0))
            with pytest.raises(ZeroDivisionError):
                tdaexp.attribute(model, TRAIN, QUERIES, "dot", dataset=PLAIN)
        else:
            with torch.no_grad():
                answer = tdaexp.attribute(model, TRAIN, QUERIES, "ekfac", dataset=PLAIN)
                answer.save("runs/mine")
                tdaexp.attribute(model, TRAIN, QUERIES, "random", dataset=PLAIN)
        after = state(model)
    finally:
        torch.set_default_dtype(torch.float32)
        transformers_logging.set_verbosity_warning()
    assert {name: after[name] == value for name, value in before.items()} == dict.fromkeys(before, True)


def test_a_model_in_training_mode_is_explained_in_eval_mode_and_that_is_said(here, caplog):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    data = TensorDataset(torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1]))
    trained = tdaexp.attribute(module, data, data, "dot", loss=loss)
    assert "in training mode, with BatchNorm1d, Dropout: it is explained in eval mode" in caplog.text
    assert module.training and int(module[1].num_batches_tracked) == 0
    caplog.clear()
    quiet = tdaexp.attribute(module.eval(), data, data, "dot", loss=loss)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    np.testing.assert_array_equal(trained.dataset["influence"].values, quiet.dataset["influence"].values)


def test_the_import_is_light():
    code = "import sys, tdaexp; dir(tdaexp); print({'torch', 'transformers', 'numpy', 'hydra'} & set(sys.modules))"
    source = str(Path(tdaexp.__file__).parents[1])
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert told.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        tdaexp.atribute  # noqa: B018


def test_a_notebook_shows_progress(here, monkeypatch, capsys):
    class ZMQInteractiveShell:
        pass

    kernel = types.ModuleType("IPython")
    kernel.get_ipython = ZMQInteractiveShell
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    data = TensorDataset(torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1]))
    tdaexp.attribute(nn.Linear(3, 2), data, data, "dot", loss=loss)
    assert "gradient products:   0%" in capsys.readouterr().err


# --- any module


def loss(module: nn.Module, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


@pytest.fixture
def digits() -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    return module, TensorDataset(torch.randn(7, 3).double(), torch.tensor([0, 1, 0, 1, 0, 1, 1]))


def gradients(module: nn.Module, data: TensorDataset) -> torch.Tensor:
    """Of each item's loss by autograd, flat [N, D]."""
    rows = [[part[None] for part in data[n]] for n in range(len(data))]
    found = [torch.autograd.grad(loss(module, row).sum(), list(module.parameters())) for row in rows]
    return torch.stack([torch.cat([part.flatten() for part in one]) for one in found])


def test_a_modules_dot_products_are_autograds(here, digits):
    module, data = digits
    answer = tdaexp.attribute(module, data, [data[2], data[5]], "dot", loss=loss)
    found, every = influence.scores(answer.dataset).values, gradients(module, data)
    np.testing.assert_allclose(found, (every[[2, 5]] @ every.T).numpy(), rtol=1e-9)
    loader = DataLoader(data, batch_size=3)
    again = tdaexp.attribute(module, loader, [data[2], data[5]], Dot(), loss=loss)
    np.testing.assert_array_equal(influence.scores(again.dataset).values, found)


def test_trak_with_a_loss_of_ones_own_is_that_of_the_linearised_loss(here, digits):
    module, data = digits
    answer = tdaexp.attribute(module, data, data, "trak", loss=loss, dimensions=4, ridge=0.1)
    parts, start = [], 0
    for rows, columns in ((5, 3), (2, 5)):  # weight, then bias: the last column of a matrix
        own = gradients(module, data)[:, start : start + rows * (columns + 1)]
        weight, bias = own[:, : rows * columns].view(-1, rows, columns), own[:, rows * columns :, None]
        parts.append(torch.cat([weight, bias], 2).flatten(1))
        start += rows * (columns + 1)
    shapes = {"0": (5, 4), "2": (2, 6)}
    sketches = [make_sketch("trak", name, shape, 4, 0, "rademacher") for name, shape in shapes.items()]
    projected = [one.project_gradient(part) for one, part in zip(sketches, parts, strict=True)]
    whole = sum(projected)
    gram = whole.T @ whole
    solved = whole @ torch.linalg.inv(gram + 0.1 * gram.trace() / 4 * torch.eye(4, dtype=gram.dtype))
    wanted = torch.stack([solved @ part.T for part in projected], 2)
    np.testing.assert_allclose(answer.dataset["influence"].values, wanted.numpy(), rtol=1e-8, atol=1e-12)


# --- bad input


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)


class Augmented(list):
    def __getitem__(self, place):
        return torch.rand(3), torch.tensor(0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": []}, "train: holds no row"),
        ({"queries": []}, "queries: holds no row"),
        ({"train": (row for row in TRAIN)}, "train: a generator gives no row twice"),
        ({"train": {"train": TRAIN}}, r"train: holds several parts \(train\)"),
        ({"train": [*TRAIN, 3]}, "train, row 8: is a int; a row is a dict, a string, or a pair"),
        ({"train": 3}, "train: a int gives no row twice or has no length"),
        ({"train": [{"words": "a"}]}, r"train: none of its columns \(words\) has a usual name"),
        ({"train": "none.jsonl"}, "none.jsonl: no such file"),
        ({"queries": [{"prompt": "a", "completion": " "}]}, "queries, row 0: column 'completion' holds no text"),
        ({"method": "ekfacs"}, "tdaexp.attribute: unknown method 'ekfacs'; did you mean 'ekfac'"),
        ({"method": "explaind"}, "method=explaind: needs a recorded training"),
        ({"method": "multistage"}, "method=multistage: needs two stages"),
        ({"dampings": 1}, "unknown key 'dampings'; did you mean 'damping'"),
        ({"damping": "much"}, "'method.damping' must be a number or null, not 'much'"),
        ({"budget": 0.1}, "method 'ekfac' does not read budget"),
        ({"method": Dot(), "part": "mlp"}, "a Dot has its settings; leave out part"),
        ({"candidates": "every"}, "unknown candidates 'every'"),
        ({"dataset": {"templat": "plain"}}, "unknown key 'templat'; did you mean 'template'"),
        ({"dataset": {"path": "x"}}, "dataset.path: is handed over as train"),
        ({"trainer": {"cach_gb": 1}}, "unknown key 'cach_gb'; did you mean 'cache_gb'"),
        ({"trainer": {"strategy": "ddp"}}, "a call runs in its own process"),
        ({"trainer": {"precision": "bfloat16"}}, "trainer.precision=bfloat16: the model is float32"),
        ({"seed": -1}, "'seed' must be an integer from 0"),
        ({"model": nn.Linear(2, 2)}, "loss: is missing, and a Linear is no language model"),
        ({"loss": loss, "tokenizer": 1}, "loss: goes with items of any kind"),
    ],
)
def test_bad_texts_are_one_line(here, model, given, words):
    asked = {"model": model, "train": TRAIN, "queries": QUERIES, "method": "ekfac", **given}
    with pytest.raises(UserError, match=words):
        tdaexp.attribute(**asked)


def test_a_language_model_without_a_tokenizer(here, model):
    model.name_or_path = model.config.name_or_path = ""
    with pytest.raises(UserError, match="tokenizer: a language model's texts need one"):
        tdaexp.attribute(model, TRAIN, QUERIES)
    with pytest.raises(UserError, match="its parameters are float16"):
        tdaexp.attribute(model.half(), TRAIN, QUERIES)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": []}, "train: holds no example"),
        (
            {"train": DataLoader(TensorDataset(torch.zeros(3, 3), torch.zeros(3)), shuffle=True)},
            "a DataLoader that shuf",
        ),
        ({"queries": DataLoader(Stream())}, "queries: a DataLoader that shuffles or samples"),
        ({"train": iter([1])}, "train: a list_iterator gives no row twice"),
        ({"train": Augmented([1, 2])}, "its first item is another one each time"),
        ({"loss": lambda module, batch: loss(module, batch).mean()}, r"gives \[\] for 4 examples"),
        ({"method": "ekfac"}, "a loss of your own does not tell what the model's outputs are"),
        ({"method": "bm25"}, "method=bm25: compares words, and these examples have none"),
        ({"model": nn.Tanh()}, "model: Tanh has no parameter"),
        ({"candidates": "bm25s"}, "candidates=bm25s: reads texts"),
    ],
)
def test_bad_items_are_one_line(here, digits, given, words):
    module, data = digits
    with pytest.raises(UserError, match=words):
        tdaexp.attribute(**{"model": module, "train": data, "queries": data, "method": "dot", "loss": loss, **given})


def test_nan_in_a_module_is_refused(here, digits):
    module, data = digits
    with torch.no_grad():
        module[0].weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"1 of 15 numbers of the tensor '0\.weight' are NaN"):
        tdaexp.attribute(module, data, data, "dot", loss=loss)
