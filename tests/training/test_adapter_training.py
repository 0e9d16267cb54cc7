"""Training an adapter: it alone changes, is saved in peft's format, resumed, and found again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tdaexp.training.trained as module
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.lora import Lora
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError
from tdaexp.training.footprint import training_pass
from tdaexp.training.history import SavedCheckpoints
from tdaexp.training.module import causal_loss
from tdaexp.training.trained import Tokenisation, trained

TOKENS = Tokenisation(template="plain", max_length=64)
LORA = Lora(r=2, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def base(config, records, tmp_path):
    """The folder of the model that an adapter is trained on, with logits far from equal."""
    wide = replace(config, config={**config.config, "initializer_range": 0.3})
    start = wide.start([record.text for record in records])
    with quiet_transformers():
        start.model.save_pretrained(tmp_path / "base")
        start.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def new(base):
    return Pretrained(str(base), name="new", adapter="new", lora=LORA)


@pytest.fixture
def train(new, records, settings, tmp_path):
    def run(config=new, cache="cache", settings=settings, **keys):
        return trained(config, records, settings, TOKENS, cache_dir=tmp_path / cache, seed=0, **keys)

    return run


def adapter_in(cache):
    (found,) = cache.glob("models/*/model")
    return found


def matrices(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_the_adapter_alone_is_trained_and_kept(train, base, tmp_path):
    found, before = train().model, load_file(base / "model.safetensors")
    now = {name.replace(".base_layer", ""): value for name, value in found.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in before.items())
    moved = [value for name, value in now.items() if ".lora_B" in name]
    assert len(moved) == 4 and all(value.abs().max() > 1e-4 for value in moved)
    folder = adapter_in(tmp_path / "cache")
    assert not (folder / "model.safetensors").exists()
    note = json.loads((folder / "adapter_config.json").read_text())
    assert note["base_model_name_or_path"] == str(base) and note["r"] == 2 and note["lora_dropout"] == 0


def test_it_learns(train, new, settings, losses):
    everywhere = replace(new, lora=Lora(r=4))
    found = train(everywhere, settings=replace(settings, steps=40, lr=3e-2))
    first, *_, last = losses(Path(found.model.name_or_path))
    assert last < first - 0.5


def test_peft_reads_what_was_trained(train, base, tmp_path):
    from adapted import by_peft

    ours = train(dtype=torch.float64).model
    theirs, tokens = by_peft(base, adapter_in(tmp_path / "cache")), torch.arange(3, 20)[None]
    torch.testing.assert_close(ours(tokens).logits, theirs(input_ids=tokens).logits, rtol=0, atol=1e-12)


def test_a_second_call_and_the_folder_alone_find_it(train, tmp_path, monkeypatch):
    first = train()
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    second, folder = train(), adapter_in(tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    alone = Pretrained(str(folder)).load()
    for one in (second, alone):
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), first.model.parameters(), strict=True))


@pytest.mark.parametrize("step", [0, 5])
def test_a_killed_training_goes_on_to_the_same_bits(step, train, kill_at, tmp_path, monkeypatch):
    train(cache="straight")
    with monkeypatch.context() as patch, pytest.raises(kill_at(step, patch)):
        train()
    left = list(tmp_path.glob("cache/models/*/resume/*.ckpt"))
    assert bool(left) == (step > 0)
    for file in left:  # the base is not in it
        assert all(".lora_" in name for name in torch.load(file, weights_only=True)["state_dict"])
    train()
    one, two = (matrices(adapter_in(tmp_path / cache)) for cache in ("straight", "cache"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_settings_and_base_are_part_of_a_trainings_name(new, records, settings, tmp_path, base):
    def of(config):
        return module.trained_folder(config, records, settings, TOKENS, cache_dir=tmp_path, seed=0).name

    names = [of(new), of(replace(new, lora=replace(LORA, r=3))), of(replace(new, lora=replace(LORA, seed=1))),
             of(replace(new, adapter=None))]  # fmt: skip
    note = base / "generation_config.json"
    note.write_text(note.read_text().replace("{", '{"temperature": 0.5,', 1))
    assert len({*names, of(new)}) == 5


def test_a_base_that_changed_since_is_refused(train, base, tmp_path):
    train()
    folder = shutil.copytree(adapter_in(tmp_path / "cache"), tmp_path / "kept")
    Pretrained(str(folder)).load()
    note = base / "generation_config.json"
    note.write_text(note.read_text().replace("{", '{"temperature": 0.5,', 1))
    with pytest.raises(UserError, match=r"kept: an adapter that was trained on other files than those of .*base now"):
        Pretrained(str(folder)).load()


def test_a_damaged_one_is_refused_with_advice(train, tmp_path):
    train()
    file = adapter_in(tmp_path / "cache") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"adapter_model.safetensors: its checksum is wrong.*delete {file.parent}"):
        train()


def test_checkpoints_on_its_way_are_adapters(train, settings, tmp_path):
    loaded = train(settings=replace(settings, keep="all"))
    moments = SavedCheckpoints(loaded, torch.device("cpu"), torch.float32).moments(None, 0)
    assert [moment.step for moment in moments] == [2, 4, 6]
    saved = matrices(adapter_in(tmp_path / "cache").parent / "checkpoints" / "step-4")
    then = moments[1].load().state_dict()
    name = "model.layers.1.self_attn.v_proj.lora_B"
    assert torch.equal(then[f"{name}.default.weight"], saved[f"base_model.model.{name}.weight"])
    assert not torch.equal(then[f"{name}.default.weight"], loaded.model.state_dict()[f"{name}.default.weight"])


def test_the_optimisers_state_is_kept_of_the_adapter_alone(train, settings):
    loaded = train(settings=replace(settings, keep="state"))
    moment = SavedCheckpoints(loaded, torch.device("cpu"), torch.float32).moments([4], 0)[0]
    state, names = moment.state(), dict(moment.load().named_parameters())
    assert state.updates == 4
    for name, value in names.items():
        if ".lora_" in name:
            assert state.first(name).shape == state.second(name).shape == value.shape and state.second(name).any()
        else:
            with pytest.raises(UserError, match="that parameter was not trained"):
                state.second(name)


def test_training_goes_on_from_an_adapter(train, new, tmp_path):
    first = train()
    again = train(replace(new, adapter=str(first.model.name_or_path)), cache="more")
    assert again.fingerprint != first.fingerprint
    assert matrices(adapter_in(tmp_path / "more")).keys() == matrices(adapter_in(tmp_path / "cache")).keys()


def test_merged_where_asked(train, new):
    plain, merged = train(dtype=torch.float64), train(replace(new, merge_adapter=True), dtype=torch.float64)
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(merged.model(tokens).logits, plain.model(tokens).logits, rtol=0, atol=1e-12)
    assert merged.fingerprint != plain.fingerprint and not any("lora" in name for name in merged.model.state_dict())


def test_no_gradient_of_the_base_is_formed(new, examples):
    from tdaexp.data.examples import collate

    model = new.start([]).model
    training_pass(model, 2, 8)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    batch = collate([examples[0], examples[3]])
    whole = model(input_ids=batch.tokens, attention_mask=batch.attention).logits[:, :-1][batch.loss_mask[:, 1:]]
    wanted = torch.nn.functional.cross_entropy(whole, batch.tokens[:, 1:][batch.loss_mask[:, 1:]])
    seen = []
    handle = model.lm_head.register_forward_hook(lambda *call: seen.append(call[2].shape[:-1].numel()))
    torch.testing.assert_close(causal_loss(model, batch), wanted)
    handle.remove()
    assert seen[-1] == int(batch.loss_mask[:, 1:].sum())
