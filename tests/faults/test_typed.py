"""Kind 4, what people type: file names with any character, other programs' names, values that are none."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import TINY
from hypothesis import example, given
from hypothesis import strategies as st

from tdaexp.app.typed import as_option, for_shell, parse, quoted
from tdaexp.models.scratch import Scratch
from tdaexp.runtime.errors import UserError

OWN = [text for text in TINY if not text.startswith("dataset.")]
TEXT = ("dataset=text", "dataset.text_column=t", "dataset.paraphrase_column=t", "dataset.query_sets=[paraphrased]")
NAMES = [
    "données.jsonl",
    "my data (1).jsonl",
    "a,b=c.jsonl",
    "日本.jsonl",
    "a,b.jsonl",
    "[x].jsonl",
    "{y}.jsonl",
    'it\'s "q".jsonl',
    "back\\slash.jsonl",
    "  blank.jsonl",
    "a$b#c;d&e!f?g*h%i:j@k^l~m+n|o<p>q`r.jsonl",
    "emoji👨‍👩‍👧.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_found(commands, name):
    Path(name).write_text("".join(json.dumps({"t": f"text {k}"}) + "\n" for k in range(8)), encoding="utf-8")
    commands.done("attribute", "method=bm25", *OWN, *TEXT, f"dataset.path={name}", "plan=true")


def test_the_home_folder_is_a_tilde(commands, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/x (1).jsonl: no such file" in commands.refused(
        "attribute", "method=bm25", *OWN, *TEXT, "dataset.path=~/x (1).jsonl"
    )
    code, _ = commands("attribute", "method=bm25", "cache_dir=~/kept", "--cfg", "job", "--package", "cache_dir")
    assert code == 0
    train = [text for text in TINY if not text.startswith(("decoding", "metric", "trainer.fit.steps"))]
    commands.done("train", *train, "hydra.run.dir=~/run", "trainer.fit.steps=0")
    assert (tmp_path / "run" / "metrics.json").is_file() and not Path("~").exists()


def test_a_missing_file_is_missing_whatever_its_name(commands):
    for name in ("données (1).jsonl", "a,b=c.jsonl", "e=m c^2.jsonl"):
        line = commands.refused("attribute", "method=bm25", *OWN, *TEXT, f"dataset.path={name}")
        assert f"{name}: no such file" in line


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
@example("it's \\\"x\\\\")
@example("\\")
def test_a_quoted_text_is_read_as_it_is(text):
    if "${" not in text:
        assert parse(f"key={quoted(text)}").value() == text
        (typed,) = shlex.split(for_shell("key", text))
        assert parse(typed).value() == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
@example("a,b=c")
def test_a_value_that_does_not_parse_is_text(text):
    """What Hydra's grammar takes is left as it was typed; the rest is a text, but for what begins a list."""
    plain, typed = f"key={text}", as_option(f"key={text}", multirun=False)
    if parse(plain) is not None:
        assert typed == plain
    elif not text.startswith(("[", "{", "'", '"')) and "${" not in text:
        assert parse(typed).value() == text


def test_in_a_sweep_each_value_is_looked_at(commands):
    assert as_option("key=a (1),b", multirun=True) == 'key="a (1)",b'
    assert as_option("key=1,2", multirun=True) == "key=1,2"
    assert as_option("seed", multirun=True) == "seed" and as_option("~seed", multirun=False) == "~seed"


def test_a_list_that_is_none_says_how_to_type_a_text(commands):
    line = commands.refused("attribute", "method=random", "dataset.path=[x.jsonl")
    assert """typed as 'dataset.path="[x.jsonl"'""" in line
    line = commands.refused("attribute", "method=random", "dataset.path=a,b.jsonl")
    assert """or 'dataset.path="a,b.jsonl"' for a text with commas""" in line


LIGHTNING = {
    "trainer.max_steps=60": "it is called trainer.fit.steps here",
    "max_steps=60": "it is called trainer.fit.steps here",
    "trainer.max_epochs=3": "training is counted in steps, not in epochs: trainer.fit.steps",
    "trainer.precision=bf16-true": "it is called 'bfloat16' here",
    "trainer.precision=32": "it is called 'float32' here",
    "trainer.precision=16-mixed": "take bfloat16 or float32",
    "trainer.accelerator=gpu": "it is called 'cuda' here",
    "trainer.devices=auto": "it is called '0' here",
    "trainer.strategy=ddp_spawn": "it is called 'ddp' here",
    "trainer.num_nodes=2": "it is called trainer.nodes here",
    "trainer.learning_rate=1": "it is called trainer.fit.lr here",
    "trainer.fit.learning_rate=1": "it is called trainer.fit.lr here",
    "trainer.gradient_clip_val=1": "it is called trainer.fit.clip here",
    "trainer.accumulate_grad_batches=2": "gradients are not accumulated here",
    "trainer.default_root_dir=x": "hydra.run.dir",
    "trainer.fit.optimizer=SGD": "did you mean 'sgd'",
    "trainer.steps=3": "there is a key 'trainer.fit.steps'",
    "trainer.nodes=3": "trainer.nodes=3: several machines need trainer=ddp",
    "trainer.devices=2": "trainer.devices=2: several processes need trainer=ddp",
    "method.budget=0.1": "there is a key 'budget'",
    "hydra.jb.name=x": "did you mean 'job'",
    "hydra.job.nam=x": "did you mean 'name'",
    "hydra.launcher.njobs=2": "hydra.launcher.njobs",
}


@pytest.mark.parametrize(("option", "said"), LIGHTNING.items())
def test_other_programs_names_are_known(commands, option, said):
    assert said in commands.refused("attribute", "method=random", option)


def test_a_method_without_keys_says_so(commands):
    line = commands.refused("attribute", "method=bm25", "method.budget=0.1")
    assert "'method' takes no keys; there is a key 'budget'" in line and "choices: " not in line
    assert "'method' takes no keys, leave it out" in commands.refused("attribute", "method=bm25", "method.order=1")


@pytest.mark.parametrize("value", ["[[]]", "[[paraphrased]]", "[{a:1}]"])
def test_an_entry_that_is_itself_a_list_or_keys_is_of_the_wrong_type(commands, value):
    line = commands.refused("attribute", "method=random", f"dataset.query_sets={value}")
    assert "'dataset.query_sets' must be a list, e.g. [a,b], each text" in line


HYDRAS = [
    ("hydra.verbose={a:1}", "hydra.verbose"),
    ("hydra.job_logging.root.level=LOUD", "unknown level 'LOUD'"),
    ("hydra.job_logging.root.handlers=[consol]", "did you mean 'console'"),
    ("hydra.job_logging.handlers=3", "must be a set of keys"),
    ("hydra.launcher=null", "hydra.launcher"),
    ("hydra.job.env_copy=[NO_SUCH_VARIABLE]", "NO_SUCH_VARIABLE"),
    ("hydra.run.dir=${nope}", "hydra.run.dir"),
    ("--cfg=job --package=sede", "did you mean 'seed'"),
    ("--resolve", "goes with --cfg"),
    ("hydra.mode=MULTIRUN --cfg=job", "shows one configuration"),
]


@pytest.mark.parametrize(("options", "said"), HYDRAS)
def test_hydras_own_keys_and_options(commands, options, said):
    assert said in commands.refused("attribute", "method=random", *options.split())


PLACES = ["/etc/passwd", "/etc/passwd/x", "x" * 300, "/proc/none/x", "a/" * 3000]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[:12])
def test_a_run_folder_that_cannot_be_one(commands, place):
    assert "hydra.run.dir=" in commands.refused("attribute", "method=random", *TINY, f"hydra.run.dir={place}")
    assert "hydra.sweep.dir=" in commands.refused("train", "-m", "seed=1,2", f"hydra.sweep.dir={place}")


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999", "4294967296", "nan", "1.5"])
def test_a_seed_that_is_none(commands, seed):
    assert "seed" in commands.refused("attribute", "method=random", *TINY, f"seed={seed}")
    assert "model.seed" in commands.refused("attribute", "method=random", *TINY, f"model.seed={seed}")


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BAD_SIZES = [
    ("num_hidden_layers", -1, "must be an integer from 1 to"),
    ("num_hidden_layers", 10**9, "must be an integer from 1 to"),
    ("hidden_size", 0, "must be an integer from 1 to"),
    ("hidden_size", 15, "hidden_size=15 is no multiple of num_attention_heads=2"),
    ("hidden_size", "wide", "must be an integer"),
    ("hidden_size", [16], "must be an integer"),
    ("hidden_size", 16.5, "must be an integer"),
    ("hidden_size", None, "must be an integer"),
    ("hidden_size", True, "must be an integer"),
    ("num_attention_heads", 3, "is no multiple of num_attention_heads=3"),
    ("num_key_value_heads", 3, "is no multiple of num_key_value_heads=3"),
    ("hidden_act", "foo", "cannot be built with it"),
    ("clip_qkv", "x", "cannot be built with it"),
    ("tie_word_embeddings", "x", "must be true or false"),
    ("initializer_range", -1.0, "cannot be built"),
    ("return_dict", False, "unknown key 'return_dict'"),
    ("eos_token_id", 3, "comes from the tokenizer"),
    ("intermediate_size", 2**31, "GB are free"),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD_SIZES)
def test_a_size_that_is_none_names_its_key(key, value, said):
    with pytest.raises(UserError) as caught:
        Scratch(config={**SIZES, key: value}, vocab_size=300).start(["some text"])
    assert said in str(caught.value) and "model.config" in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_refuses_the_same_sizes(commands):
    line = commands.refused("attribute", "method=random", *TINY, "plan=true", "model.config.num_attention_heads=3")
    assert "is no multiple of num_attention_heads=3" in line


def test_a_model_from_scratch_is_a_decoder():
    with pytest.raises(UserError, match=r"model\.architecture=bert: a bert model is an encoder"):
        Scratch(architecture="bert", vocab_size=300).start(["some text"])
