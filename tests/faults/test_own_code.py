"""Kind 3, code that comes from outside: a model's own, classes in configurations, pickles. None of it runs unasked."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, TINY

RANDOM = ("method=random", *TINY)


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


class Evil:
    """A pickle that leaves a mark where it is read."""

    def __reduce__(self):
        return open, ("ran.txt", "w")


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """A folder whose model type transformers does not know, with code of its own that leaves a mark when it runs."""
    folder = tmp_path / "custom"
    folder.mkdir()
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": own}))
    mark = tmp_path / "ran.txt"
    code = (
        f"open({str(mark)!r}, 'w')\nfrom transformers import PretrainedConfig, LlamaForCausalLM\n"
        "class Own(PretrainedConfig):\n    model_type = 'unheard_of'\nclass Model(LlamaForCausalLM):\n    pass\n"
    )
    (folder / "own.py").write_text(code)
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "option",
    [
        "model=olmo1b model.expected_components=null model.pretrained={}",
        "model=olmo1b model.expected_components=null plan=true model.pretrained={}",
        "model.finetuned={}",
        "dataset/paraphrase=local dataset.paraphrase.cache=asked dataset.paraphrase.model={}",
    ],
)
def test_a_models_own_code_is_not_run_and_nobody_is_asked(commands, custom, monkeypatch, option):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    options = option.format(custom).replace("dataset/par", "+dataset/par").split()
    tiny = [text for text in TINY if "olmo1b" not in option or not text.startswith("model.")]
    line = commands.refused("attribute", "method=random", *tiny, *options)
    assert "needs Python code of its own" in line and "trust_remote_code=true" in line
    assert not Path("ran.txt").exists()


def test_an_encoder_of_sentences_with_modules_of_its_own_is_refused(tmp_path):
    hub = pytest.importorskip("tdaexp.runtime.hub")
    pytest.importorskip("sentence_transformers")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Encoder"}]))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran.txt')!r}, 'w')\n")
    with pytest.raises(hub.UserError, match=r"'own\.Encoder' is Python code of the model's own"):
        hub.sentence_encoder(str(tmp_path))
    assert not (tmp_path / "ran.txt").exists()


def test_every_model_goes_through_one_door():
    """`from_pretrained` and `from_config` of transformers are called in `runtime.hub` alone."""
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}"
        for file in sorted((REPOSITORY / "src").rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"(?<!PeftConfig)\.from_(pretrained|config)\((?!…)|\bSentenceTransformer\(", line)
    ]
    assert found and all(place.startswith("src/tdaexp/runtime/hub.py") for place in found), found


def test_a_pickled_paraphraser_is_one_line(commands, tmp_path):
    from transformers import LlamaConfig

    from tdaexp.models.tokenizer import train_tokenizer

    folder = tmp_path / "pickled"
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaConfig(**sizes, vocab_size=len(tokenizer), architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    own = ("dataset.paraphrase.cache=asked", f"dataset.paraphrase.model={folder}")
    line = commands.refused("attribute", *RANDOM, "+dataset/paraphrase=local", *own)
    assert f"dataset.paraphrase.model={folder}: cannot load" in line
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize(
    ("kind", "architecture", "said"),
    [
        ("t5", "T5ForConditionalGeneration", "a t5 model is an encoder-decoder"),
        ("bart", "BartForConditionalGeneration", "a bart model is an encoder-decoder"),
        ("bert", "BertForMaskedLM", "a bert model is an encoder"),
        ("distilbert", "DistilBertForMaskedLM", "a distilbert model is an encoder"),
        ("vit", "ViTForImageClassification", "a vit model has no head for the next token"),
    ],
)
def test_models_of_another_kind_say_so(commands, tmp_path, kind, architecture, said):
    folder = tmp_path / kind
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
    shutil.copy(_some_weights(tmp_path), folder / "model.safetensors")
    model = ("model=olmo1b", "model.expected_components=null", f"model.pretrained={folder}")
    plan = f"plan={str(kind in ('t5', 'bert')).lower()}"
    line = commands.refused("attribute", "method=random", "dataset.people=10", *model, plan)
    assert said in line and "fetch" not in line and "only models that predict the next token" in line


def _some_weights(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, folder / "some.safetensors")
    return folder / "some.safetensors"


HYDRA = {
    "callbacks": "callbacks: {x: {_target_: pandas.read_pickle, filepath_or_buffer: evil.pkl}}",
    "a nested one": (
        "callbacks: {x: {_target_: hydra.experimental.callbacks.LogJobReturnCallback, y: {_target_: os.system}}}"
    ),
    "a module's import": "callbacks: {x: {_target_: hydra.experimental.callbacks.pickle.load}}",
    "ours": "callbacks: {x: {_target_: tdaexp.methods.dot.Dot}}",
    "launcher": "launcher: {_target_: os.system}",
    "sweeper": "sweeper: {_target_: os.system}",
    "a handler": "job_logging: {handlers: {console: {class: logging.handlers.SocketHandler}}}",
    "a factory": "job_logging: {formatters: {terse: {(): os.system}}}",
    "a filter": "hydra_logging: {filters: {x: {(): os.system}}}",
    "a stream": "hydra_logging: {handlers: {console: {stream: ext://os.environ}}}",
    "by reference": "callbacks: {x: {_target_: '${oc.env:EVIL_CLASS}'}}",
    "the loader": "job: {env_set: {LD_PRELOAD: evil.so}}",
    "a sweep": "{mode: MULTIRUN, sweeper: {params: {+hydra.callbacks.x._target_: os.system, seed: '1,2'}}}",
}


@pytest.mark.parametrize("text", HYDRA.values(), ids=HYDRA)
def test_hydras_own_node_names_no_foreign_class(commands, monkeypatch, text):
    monkeypatch.setenv("EVIL_CLASS", "pandas.read_pickle")
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    text = text if text.startswith("{") else f"{{{text}}}"
    write("own/experiment/x.yaml", f"# @package _global_\nhydra: {text}\n")
    line = commands.refused("attribute", "--config-dir", "own", *RANDOM, "experiment=x")
    assert line.startswith("error: own/experiment/x.yaml")
    assert not Path("ran.txt").exists() and not Path("outputs").exists()


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("hydra/callbacks/x", "x:\n  _target_: pandas.read_pickle\n", "pandas.read_pickle"),
        ("hydra/output/x", "# @package hydra\nrun:\n  dri: here\n", "did you mean 'dir'"),
        ("hydra/output/x", "# @package hydra\nrnu:\n  dir: here\n", "did you mean 'run'"),
        ("hydra/job_logging/x", "version: 1\nroot: {}\nhandlers: {a: {class: os.system}}\n", "os.system"),
    ],
)
def test_nor_does_a_group_of_hydras(commands, name, text, part):
    write(f"own/{name}.yaml", text)
    line = commands.refused("attribute", "--config-dir", "own", *RANDOM, f"{name.rpartition('/')[0]}=x")
    assert line.startswith(f"error: own/{name}.yaml") and part in line
    assert not Path("outputs").exists()


def test_configurations_are_not_looked_for_in_packages(commands):
    write("conf/attribute.yaml", "hydra:\n  searchpath: [pkg://evil]\n")
    write("evil/__init__.py", "open('ran.txt', 'w')\n")
    assert "pkg://evil" in commands.refused("attribute", "--config-path", str(Path("conf").absolute()))
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize(
    ("option", "how"),
    [
        ("+hydra.callbacks.x._target_=pandas.read_pickle", ()),
        ("+hydra.callbacks.x._target_=pandas.read_pickle", ("--cfg", "job")),
        ("+hydra.callbacks.x._target_=pandas.read_pickle", ("--info=searchpath",)),
        ("+hydra.callbacks.x._target_=pandas.read_pickle", ("-m", "seed=1,2")),
        ("hydra.launcher._target_=os.system", ("-m", "seed=1,2")),
        ("hydra.job_logging.handlers.console.class=os.system", ()),
        ("hydra.job_logging.handlers.console.stream=ext://os.environ", ()),
        ("+hydra.job.env_set.PYTHONPATH=evil", ()),
    ],
)
def test_nor_do_options(commands, option, how):
    line = commands.refused("attribute", "method=random", option, *how)
    assert option in line and not Path("outputs").exists() and not Path("multirun").exists()


def test_hydras_own_classes_are_let_in(commands):
    option = "+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback"
    assert commands("attribute", "method=random", option, "--cfg", "job", "--package", "seed")[0] == 0


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("method._target_=tdaexp.data.digits.Digits", ["no class for 'method'", "it has no 'attribute'"]),
        ("model._target_=tdaexp.methods.dot.Dot", ["no class for 'model'"]),
        ("dataset._target_=tdaexp.models.scratch.Scratch", ["no class for 'dataset'"]),
        ("decoding._target_=tdaexp.methods.random.Random", ["no class for 'decoding'"]),
        ("candidates._target_=tdaexp.data.digits.Digits", ["no class for 'candidates'"]),
        ("+dataset.paraphrase._target_=tdaexp.methods.dot.Dot", ["no class for 'dataset.paraphrase'"]),
        ("dataset._target_=tdaexp.data.dataset.Dataset", ["a base for others"]),
        ("method._target_=pandas.read_pickle", ["is refused"]),
        ("method._target_=nowhere_at_all:Dot", ["cannot import 'nowhere_at_all'"]),
    ],
)
def test_a_class_of_another_group_is_one_line(commands, option, parts):
    line = commands.refused("attribute", "method=random", option)
    assert all(part in line for part in parts), line


def test_an_experiment_is_not_read_from_a_pickle(commands):
    Path("config.pickle").write_bytes(pickle.dumps(Evil()))
    assert "pickle" in commands.refused("attribute", "--experimental-rerun", "config.pickle")
    assert not Path("ran.txt").exists()
