import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdaexp.models.hub import load_weights
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.source import locate
from tdaexp.runtime.errors import UserError


def load(folder, **keys):
    return Pretrained(str(folder), **keys).load()


def refused(folder, message, **keys):
    with pytest.raises(UserError, match=message) as error:
        load(folder, **keys)
    assert "\n" not in str(error.value)


def test_a_saved_model_computes_what_it_computed(small_start, hub_folder, capfd):
    start, loaded = small_start(), Pretrained(str(hub_folder), template="olmo").load()
    tokens = torch.arange(3, 30)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, start.model(tokens).logits, rtol=0, atol=0)
    assert loaded.template == "olmo" and loaded.max_length == 128
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer("Ada Keller")["input_ids"] == start.tokenizer("Ada Keller")["input_ids"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_wanted_type_is_what_one_gets(hub_folder, dtype):
    model = Pretrained(str(hub_folder)).load("cpu", dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_length_is_the_models_unless_the_config_says_otherwise(hub_folder, small_start, tmp_path):
    assert load(hub_folder, max_length=50).max_length == 50
    bloom = small_start("bloom")  # ALiBi: no limit of its own
    with quiet_transformers():
        bloom.model.save_pretrained(tmp_path / "bloom")
        bloom.tokenizer.save_pretrained(tmp_path / "bloom")
    assert load(tmp_path / "bloom").max_length == 2048
    with pytest.raises(UserError, match=r"model\.max_length=1"):
        Pretrained(str(hub_folder), max_length=1)
    refused(hub_folder, r"model\.max_length=129: .* takes 128 tokens at most", max_length=129)


def test_fingerprint_is_that_of_the_content(hub_folder, tmp_path):
    copy = shutil.copytree(hub_folder, tmp_path / "copy")
    before = Pretrained(str(copy)).start_fingerprint()
    assert before == load(hub_folder).fingerprint
    (copy / "notes.md").write_text("not a dependency")
    assert load(copy).fingerprint == before
    prints = {before}
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        changed = shutil.copytree(copy, tmp_path / file)
        raw = (changed / file).read_bytes()
        (changed / file).write_bytes(raw[:-1] + b"\x00" if file.endswith("safetensors") else raw + b" ")
        prints.add(Pretrained(str(changed)).start_fingerprint())
    assert len(prints) == 4
    assert Pretrained(str(copy), tokenizer=str(tmp_path / "tokenizer.json")).start_fingerprint() not in prints


def test_no_folder_no_config_no_weights(tmp_path, hub_folder):
    refused(tmp_path / "absent", "no such folder")
    refused(hub_folder / "config.json", "is a file; name the folder")
    (hub_folder / "model.safetensors").unlink()
    refused(hub_folder, r"no weights")
    (hub_folder / "config.json").unlink()
    refused(hub_folder, r"no config\.json")


def test_a_folder_has_no_revision(hub_folder):
    refused(hub_folder, "has no revision", revision="step100")


@pytest.mark.parametrize("left", [4, 200, -100])
def test_truncated_weights_are_named(hub_folder, left):
    file = hub_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(hub_folder, r"model\.safetensors: truncated or corrupt")


def test_a_missing_shard_is_named(hub_folder):
    names = list(load_file(hub_folder / "model.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (hub_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(hub_folder, r"the shard model-00001-of-00002\.safetensors is missing")
    (hub_folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    refused(hub_folder, r"not a readable index")


def test_an_unreadable_config_is_named(hub_folder):
    (hub_folder / "config.json").write_text('{"model_type": ')
    refused(hub_folder, r"config\.json: not readable .* fetch the model again")


def test_a_tensor_that_is_missing_or_misshapen_is_not_made_up(hub_folder):
    file = hub_folder / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({k: v for k, v in whole.items() if k != name}, file, metadata={"format": "pt"})
    refused(hub_folder, rf"lacks 1 parameter tensors, {name}")
    save_file({**whole, name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    refused(hub_folder, "do not have the shapes")


def test_a_pickle_that_runs_code_is_not_run(hub_folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (hub_folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, hub_folder / "pytorch_model.bin")
    refused(hub_folder, "damaged or unsafe PyTorch file")
    assert not (tmp_path / "owned").exists()


def test_weights_in_a_safe_pytorch_file_load(hub_folder, small_start):
    torch.save(load_file(hub_folder / "model.safetensors"), hub_folder / "pytorch_model.bin")
    (hub_folder / "model.safetensors").unlink()
    weights = load(hub_folder).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in small_start().model.state_dict().items())


def test_a_missing_tokenizer_is_not_made_up_and_can_be_lent(hub_folder, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    for file in hub_folder.glob("tokenizer*"):
        shutil.move(file, words / file.name)
    refused(hub_folder, r"no usable tokenizer there; set model\.tokenizer")
    assert load(hub_folder, tokenizer=str(words)).tokenizer("Ada")["input_ids"][0] == 0


def test_a_foreign_tokenizer_is_refused(hub_folder, small_start, tmp_path):
    small_start(vocab_size=280).tokenizer.save_pretrained(tmp_path / "fewer")
    assert load(hub_folder, tokenizer=str(tmp_path / "fewer"))  # fewer tokens than rows is how many models are
    tokenizer = small_start().tokenizer
    tokenizer.add_tokens(["a new word"])
    tokenizer.save_pretrained(tmp_path / "more")
    refused(hub_folder, r"set model\.tokenizer to the model's own", tokenizer=str(tmp_path / "more"))


def test_padding_falls_back_to_the_end_token(hub_folder, small_start):
    tokenizer = small_start().tokenizer
    tokenizer.pad_token = None
    tokenizer.save_pretrained(hub_folder)
    assert load(hub_folder).tokenizer.pad_token_id == 1


def test_the_number_of_components_is_checked_when_given(hub_folder):
    assert load(hub_folder, expected_components=16)
    refused(hub_folder, r"model\.expected_components=113 but .* has 16", expected_components=113)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("said", ["float32", "bfloat16", None])
def test_a_checkpoint_in_another_type_is_converted_with_a_line(hub_folder, caplog, stored, said, wanted):
    """Whatever its config.json says: what counts is in the files."""
    config = json.loads((hub_folder / "config.json").read_text(encoding="utf-8"))
    (hub_folder / "config.json").write_text(json.dumps({**config, "dtype": said}), encoding="utf-8")
    file = hub_folder / "model.safetensors"
    tensors = {name: value.to(getattr(torch, stored)) for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    with caplog.at_level("INFO"):
        model = Pretrained(str(hub_folder)).load(dtype=getattr(torch, wanted)).model
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], value.to(getattr(torch, wanted))) for name, value in tensors.items())
    told = f"stored in {stored}, run in {wanted} (trainer.precision)"
    assert (told in caplog.text) == ("stored in" in caplog.text) == (stored != wanted)


def test_weights_go_straight_to_the_device(hub_folder):
    """Here to the meta device, which shows that nothing is put on the CPU first."""
    source = locate(str(hub_folder), None, "model.pretrained")
    model = load_weights(source, torch.bfloat16, False, device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
