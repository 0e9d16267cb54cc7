"""Adapters are found, checked and loaded; what is computed is what peft computes."""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from adapted import by_peft, write_adapter
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from tdaexp.models.components import component_map
from tdaexp.models.empty import empty_model
from tdaexp.models.empty_adapter import put_empty_on
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.lora import Lora
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError

TOKENS = torch.arange(3, 25)[None]


def hub(start, folder: Path) -> Path:
    """Write a model to a folder in hub format."""
    with quiet_transformers():
        start.model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(small_start, tmp_path_factory):
    return hub(small_start("llama"), tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(base):
    return write_adapter(base, base.parent / "adapter")


@pytest.fixture
def copied(adapter, tmp_path):
    """An adapter of one's own, to be changed."""
    return shutil.copytree(adapter, tmp_path / "adapter")


@pytest.fixture(scope="module")
def peft_logits(base, adapter):
    with torch.no_grad():
        return by_peft(base, adapter)(input_ids=TOKENS).logits


def logits(**keys):
    loaded = Pretrained(**{key: str(value) if isinstance(value, Path) else value for key, value in keys.items()})
    return loaded.load(dtype=torch.float64).model(TOKENS).logits


def edit(folder: Path, **values) -> None:
    note = folder / "adapter_config.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **values}))


def refused(message: str, **keys) -> None:
    with pytest.raises(UserError, match=message) as error:
        logits(**keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("way", ["named", "alone", "relative", "beside", "merged"])
def test_it_computes_what_peft_computes(way, base, adapter, copied, peft_logits, tmp_path):
    if way == "named":
        found = logits(pretrained=base, adapter=adapter)
    elif way == "alone":
        found = logits(pretrained=adapter)
    elif way == "relative":
        shutil.copytree(base, tmp_path / "base")
        edit(copied, base_model_name_or_path="../base")
        found = logits(pretrained=copied)
    elif way == "beside":
        edit(copied, base_model_name_or_path="owner/elsewhere")
        shutil.copytree(base, copied, dirs_exist_ok=True)
        found = logits(pretrained=copied)
    else:
        found = logits(pretrained=base, adapter=adapter, merge_adapter=True)
    assert not torch.allclose(found, logits(pretrained=base), atol=1e-3)
    torch.testing.assert_close(found, peft_logits, rtol=0, atol=1e-12)


def test_the_model_stays_what_it_was(base, adapter, capfd):
    loaded = Pretrained(str(base), adapter=str(adapter)).load(dtype=torch.bfloat16)
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and loaded.base is not None
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters()) and not loaded.model.training
    assert capfd.readouterr() == ("", "")


def test_matrices_are_components_beside_those_of_the_base(base, adapter):
    found = component_map(Pretrained(str(base), adapter=str(adapter)).load().model)
    plain = component_map(Pretrained(str(base)).load().model)
    matrices = [f"layers.{k}.attn.{part}.lora_{side}" for k in (0, 1) for part in "qv" for side in "AB"]
    assert [name for name in found.names if ".lora_" in name] == matrices
    assert [name for name in found.names if ".lora_" not in name] == plain.names and not found.skipped
    assert found.total == plain.total + 4 * 2 * 3 * 16
    merged = component_map(Pretrained(str(adapter), merge_adapter=True).load().model)
    assert merged.names == plain.names and merged.total == plain.total


def test_an_adapter_of_a_fused_matrix_is_one(small_start, tmp_path):
    folder = hub(small_start("gpt2"), tmp_path / "gpt2")
    loaded = Pretrained(str(folder), adapter="new", lora=Lora(r=2, target_modules=["c_attn"])).start([])
    names = [name for name in component_map(loaded.model).names if ".lora_" in name]
    assert names == [f"layers.{k}.attn.qkv.lora_{side}" for k in (0, 1) for side in "AB"]


def test_all_that_decides_is_part_of_the_identity(base, adapter, tmp_path):
    def of(**keys):
        copy = {name: shutil.copytree(path, tmp_path / name, dirs_exist_ok=True)
                for name, path in (("base", base), ("adapter", adapter))}  # fmt: skip
        edit(copy["adapter"], base_model_name_or_path=str(copy["base"]), **keys.pop("note", {}))
        for name, file in keys.pop("changed", ()):
            weights = load_file(copy[name] / file)
            save_file({key: value + 1e-3 for key, value in weights.items()}, copy[name] / file, {"format": "pt"})
        return Pretrained(str(copy["base"]), adapter=str(copy["adapter"]), **keys).start_fingerprint()

    found = [
        of(), of(note={"lora_alpha": 7}), of(changed=[("adapter", "adapter_model.safetensors")]),
        of(changed=[("base", "model.safetensors")]), of(merge_adapter=True),
        Pretrained(str(base)).start_fingerprint(), Pretrained(str(base), adapter="new").start_fingerprint(),
        Pretrained(str(base), adapter="new", lora=Lora(r=4)).start_fingerprint(),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert of() == found[0] == Pretrained(str(tmp_path / "adapter")).start_fingerprint()


def test_another_base_is_refused(base, adapter, copied, small_start, tmp_path):
    other = hub(small_start("llama", seed=3), tmp_path / "other")
    refused(r"adapter: an adapter to .*llama, and the weights in model.pretrained=.*other are others; set "
            r"model.pretrained=.*llama", pretrained=other, adapter=adapter)  # fmt: skip
    edit(copied, base_model_name_or_path="owner/unknown")
    deeper = small_start("llama", config={"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
                                          "intermediate_size": 24})  # fmt: skip
    refused(r"does not fit .*deeper: it lacks 4 tensors, .*layers\.2.*; name its own base \(model.pretrained=BASE",
            pretrained=hub(deeper, tmp_path / "deeper"), adapter=copied)  # fmt: skip
    narrow = hub(small_start("llama", config={"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
                                              "intermediate_size": 24}), tmp_path / "narrow")  # fmt: skip
    refused(r"does not fit .*narrow: its matrices have other shapes", pretrained=narrow, adapter=copied)
    refused(r"does not fit .*gpt2: Target modules .* not found", pretrained=hub(small_start("gpt2"), tmp_path / "gpt2"),
            adapter=copied)  # fmt: skip


def test_a_missing_base_is_named(copied):
    edit(copied, base_model_name_or_path="/nowhere/base")
    refused(r"an adapter whose base is missing \(model.pretrained=/nowhere/base: no such folder.*\); give it: "
            r"model.pretrained=BASE model.adapter=.*adapter", pretrained=copied)  # fmt: skip
    edit(copied, base_model_name_or_path=None)
    refused(r"an adapter whose adapter_config.json names no base; give it", pretrained=copied)


def test_two_adapters_are_refused(base, adapter, copied):
    refused(rf"model.pretrained={adapter} holds an adapter itself.*model.pretrained={base}",
            pretrained=adapter, adapter=copied)  # fmt: skip


def test_damage_is_refused(base, copied):
    refused(r"no such folder", pretrained=base, adapter=copied / "no")
    refused(r"llama: no adapter_config.json", pretrained=base, adapter=base)
    file = copied / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    refused(r"adapter_model.safetensors: truncated or corrupt", pretrained=base, adapter=copied)
    save_file({key: value / 0 for key, value in load_file_of(whole, copied).items()}, file, {"format": "pt"})
    refused(r"adapter: .* are NaN or infinite", pretrained=base, adapter=copied)
    file.unlink()
    refused(r"adapter: no weights of the adapter", pretrained=base, adapter=copied)
    (copied / "adapter_config.json").write_text("{")
    refused(r"adapter_config.json: not readable", pretrained=base, adapter=copied)


def load_file_of(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "whole.safetensors").write_bytes(content)
    found = load_file(folder / "whole.safetensors")
    (folder / "whole.safetensors").unlink()
    return found


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"modules_to_save": ["lm_head"]}, r"'lm_head' was trained whole"),
        ({"target_modules": ["embed_tokens"]}, r"adapter of 'model.embed_tokens' is no plain pair of matrices"),
    ],
)
def test_what_has_no_captured_gradient_is_refused_unless_merged(keys, what, base, tmp_path):
    folder = write_adapter(base, tmp_path / "other", **keys)
    refused(rf"{what}.*; model.merge_adapter=true", pretrained=folder)
    with torch.no_grad():
        wanted = by_peft(base, folder)(input_ids=TOKENS).logits
    torch.testing.assert_close(logits(pretrained=folder, merge_adapter=True), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("key", "value"), [("bias", "lora_only"), ("use_dora", True)])
def test_what_is_not_read_is_refused(key, value, base, copied):
    edit(copied, **{key: value})
    for merge in (False, True):
        refused(rf"adapter: an adapter with {key}={value}, .*merge it with its base by peft", pretrained=base,
                adapter=copied, merge_adapter=merge)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_has_the_same_matrices(dtype, base, adapter):
    for config in (Pretrained(str(adapter)), Pretrained(str(base), adapter="new", lora=Lora(r=2))):
        shape, tokenizer = config.planned([])
        empty = put_empty_on(empty_model(shape, dtype, mode := FakeTensorMode()), config.planned_adapter(), mode)
        real = config.start([]).model
        assert {name: one.shape for name, one in empty.named_parameters()} == {
            name: one.shape for name, one in real.named_parameters()
        }
        assert {one.dtype for one in empty.parameters()} == {dtype} and tokenizer is not None
    for config in (Pretrained(str(adapter), merge_adapter=True), Pretrained(str(base))):
        assert config.planned_adapter() is None


def test_without_peft_it_is_one_line(base, adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"adapter: adapters need the package peft; pip install 'tdaexp\[adapters\]'", pretrained=adapter)
    with pytest.raises(UserError, match=r"model.adapter=new: adapters need the package peft"):
        Pretrained(str(base), adapter="new").start([])


def test_a_new_one_changes_nothing_yet_and_comes_from_its_seed(base):
    def start(**keys):
        return Pretrained(str(base), adapter="new", lora=Lora(target_modules=["all-linear"], **keys)).start([]).model

    state, model = torch.random.get_rng_state(), start()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(model(TOKENS).logits, Pretrained(str(base)).load().model(TOKENS).logits)
    names = [name for name in component_map(model).names if ".lora_" in name]
    assert len(names) == 2 * 7 * 2 and not any("lm_head" in name for name in names)
    weights = [dict(one.named_parameters()) for one in (model, start(), start(seed=1))]
    name = "model.layers.1.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"r": 0}, r"model.lora.r=0"), ({"alpha": 0}, r"model.lora.alpha=0"),
        ({"target_modules": ["all-linear", "q_proj"]}, r"all-linear stands for all"),
        ({"target_modules": []}, r"model.lora.target_modules is empty"),
    ],
)  # fmt: skip
def test_keys_of_a_new_one(keys, what):
    with pytest.raises(UserError, match=what):
        Lora(**keys)


def test_layers_that_are_not_there(base):
    with pytest.raises(UserError, match=r"model.lora.target_modules=\[c_attn\]: no adapter for .*llama: .*c_attn"):
        Pretrained(str(base), adapter="new", lora=Lora(target_modules=["c_attn"])).start([])


def test_an_adapter_on_the_hub(adapter, base, peft_logits, monkeypatch, tmp_path):
    """From the local cache, as a run without network finds it: alone, with a base that is on the hub too."""
    for name, folder in (("adapter", adapter), ("base", base)):
        entry = tmp_path / f"models--owner--{name}"
        shutil.copytree(folder, entry / "snapshots" / ("a" * 40))
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("a" * 40)
    edit(tmp_path / "models--owner--adapter" / "snapshots" / ("a" * 40), base_model_name_or_path="owner/base")
    usual = huggingface_hub.constants.HF_HUB_CACHE
    for place in list(sys.modules.values()):
        if getattr(place, "HF_HUB_CACHE", None) == usual:
            monkeypatch.setattr(place, "HF_HUB_CACHE", str(tmp_path))
    for keys in ({"pretrained": "owner/adapter"}, {"pretrained": "owner/base", "adapter": "owner/adapter"}):
        torch.testing.assert_close(logits(**keys), peft_logits, rtol=0, atol=1e-12)
