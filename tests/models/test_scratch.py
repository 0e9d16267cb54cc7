import dataclasses

import pytest
import torch
import yaml
from torch import nn

from tdaexp.models.components import component_map
from tdaexp.models.scratch import Scratch
from tdaexp.runtime.errors import UserError

ARCHITECTURES = ["olmo", "llama", "gpt2", "gpt_neox", "bloom"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_of_every_architecture_is_frozen_and_fits_its_tokenizer(small_start, architecture):
    start = small_start(architecture, context=40)
    model = start.model
    assert model.config.model_type == architecture
    assert model.config.vocab_size == len(start.tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert model.config.eos_token_id == start.tokenizer.eos_token_id
    assert getattr(model.config, "max_position_embeddings", 40) == start.max_length == 40
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    logits = model(input_ids=torch.arange(40)[None]).logits
    assert logits.shape == (1, 40, len(start.tokenizer))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_off_even_in_train_mode(small_start, architecture):
    model = small_start(architecture).model.train()
    assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_weights_follow_the_seed_and_nothing_else(small_start):
    torch.manual_seed(1)
    one = small_start(seed=5).model.state_dict()
    after = torch.rand(1)
    torch.manual_seed(2)
    two = small_start(seed=5).model.state_dict()
    other = small_start(seed=6).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # building a model drew nothing from the global stream


def test_fingerprint_changes_with_what_decides_the_start_and_only_with_that(small_config):
    base = small_config()
    config = {**base.config, "hidden_size": 32}
    changes = {"architecture": "llama", "config": config, "vocab_size": 310, "seed": 1, "context": 64}
    prints = {dataclasses.replace(base, **{k: v}).start_fingerprint() for k, v in changes.items()}
    assert len(prints | {base.start_fingerprint()}) == len(changes) + 1
    assert dataclasses.replace(base, name="other").start_fingerprint() == base.start_fingerprint()
    assert base.start(["a text"]).fingerprint != base.start(["the texts, the texts"]).fingerprint


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architecture": "olmoo"}, r"model\.architecture: unknown architecture 'olmoo'; did you mean 'olmo"),
        (
            {"config": {"hiden_size": 16}},
            r"model\.config: unknown key 'hiden_size'; did you mean 'hidden_size'",
        ),
        ({"config": {"hidden_size": "wide"}}, r"model\.config\.hidden_size='wide': must be an integer"),
        ({"config": {"vocab_size": 500}}, r"model\.config\.vocab_size: set model\.vocab_size instead"),
        ({"config": {"max_position_embeddings": 5}}, r"set model\.context instead"),
        ({"architecture": "gpt2", "config": {"n_positions": 5}}, r"set model\.context instead"),
        ({"config": {"attention_dropout": 0.1}}, r"dropout is always off"),
        (
            {"architecture": "gpt2", "config": {"n_embd": 30, "n_head": 7}},
            r"gpt2 cannot be built with n_embd=30, n_head=7",
        ),
        (
            {"config": {"hidden_size": 30, "num_attention_heads": 6}},
            r"olmo cannot be built",
        ),  # odd rotary width
    ],
)
def test_bad_values_are_one_line(small_config, keys, message):
    with pytest.raises(UserError, match=message) as error:
        small_config().__class__(**{"vocab_size": 300, **keys}).start(["some text"])
    assert "\n" not in str(error.value)


def test_context_must_hold_a_prediction():
    with pytest.raises(UserError, match=r"model\.context=1"):
        Scratch(context=1)


def test_a_named_folder_is_loaded_instead_of_trained(small_config, hub_folder):
    config = small_config(pretrained=str(hub_folder), context=64)
    assert not config.needs_training and small_config().needs_training
    loaded = config.load(dtype=torch.float64)
    assert loaded.model.dtype == torch.float64 and loaded.max_length == 64
    assert config.start(["x"]).fingerprint == loaded.fingerprint
    assert small_config(pretrained=str(hub_folder), context=999).load().max_length == 128  # what the model has


@pytest.mark.parametrize(("name", "components"), [("toy_gpt", 57), ("tiny_olmo", 113)])
def test_shipped_configs_have_the_papers_layout(repository, name, components):
    values = yaml.safe_load((repository / "conf" / "model" / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "tdaexp.models.scratch.Scratch"
    # Enough different words for a full vocabulary: the model's size depends on it.
    config = Scratch(**values)
    start = config.start([f"{a}{b}{c}{a}{b}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"] * 2)
    found = component_map(start.model)
    assert len(found.components) == components
    assert not found.skipped
    assert {c.name.split(".", 2)[-1] for c in found.components} == {
        "embed", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down",
    }  # fmt: skip
    assert min(c.size for c in found.components) < 0.01 * found.total
