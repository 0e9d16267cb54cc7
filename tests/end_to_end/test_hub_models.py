"""Folders in hub format through all three commands: `model.pretrained=FOLDER`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import metrics, only

from tdaexp import influence
from tdaexp.data.biographies import Biographies
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.scratch import Scratch

SIZES = {"hidden_size": 16, "num_hidden_layers": 16, "num_attention_heads": 2, "intermediate_size": 24}
BLOOM = {"hidden_size": 16, "n_layer": 2, "n_head": 2}
NEOX = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DATA = ("dataset.people=6", "decoding.max_new_tokens=4", "metric.bootstrap=20", "metric.plots=false")


@pytest.fixture
def hub_folder(tmp_path):
    """Write a small model of random weights to a folder in hub format."""

    def make(architecture: str, config: dict[str, int]) -> Path:
        texts = [record.text for record in Biographies(people=6).load().train]
        start = Scratch(architecture=architecture, config=config, vocab_size=320).start(texts)
        with quiet_transformers():
            start.model.save_pretrained(tmp_path / "hub")
            start.tokenizer.save_pretrained(tmp_path / "hub")
        return tmp_path / "hub"

    return make


@pytest.mark.long
def test_olmo_layout_through_all_three_commands(commands, hub_folder):
    folder = hub_folder("olmo", {**SIZES, "tie_word_embeddings": True})
    model = ("model=olmo1b", f"model.pretrained={folder}")
    fit = ("trainer.fit.steps=2", "trainer.fit.batch_size=4")
    commands.done("train", *model, *fit, "dataset.people=6")
    assert metrics(only("outputs/train/*"))["train/steps"] == 2
    err = commands.done("attribute", *model, *DATA, "method=select", "budget=0.05")
    assert "in 113 components; skipped: none" in err
    store = influence.load(only("outputs/attribute/*") / "influence.zarr")
    assert store.sizes["component"] == 113 and store["component"].values[0] == "embed"
    commands.done("evaluate", *model, "dataset.people=6", "metric.bootstrap=20", "metric.plots=false")
    own, judged = (metrics(only(f"outputs/{stage}/*")) for stage in ("attribute", "evaluate"))
    assert judged["generated/accuracy"] == own["generated/accuracy"]


@pytest.mark.parametrize(
    ("model", "architecture", "config"),
    [
        ("eurollm1b7", "llama", {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1}),
        ("bloomz560m", "bloom", BLOOM),
        ("dolly3b", "gpt_neox", NEOX),
    ],
)
def test_other_layouts(commands, hub_folder, model, architecture, config):
    folder = hub_folder(architecture, config)
    expected = "model.expected_components=null"
    err = commands.done("attribute", f"model={model}", f"model.pretrained={folder}", expected, *DATA, "method=full")
    assert "(100 %)" in err
    names = influence.load(only("outputs/attribute/*") / "influence.zarr")["component"].values
    assert {"embed", "layers.0.attn.q", "layers.1.attn.v"} <= set(names)


def test_a_model_with_another_layout_than_its_config_says(commands, hub_folder):
    folder = hub_folder("olmo", {**SIZES, "num_hidden_layers": 2})
    err = commands.refused("attribute", "model=olmo1b", f"model.pretrained={folder}", *DATA)
    assert "expected_components=113 but" in err and "has 16" in err


def test_truncated_weights(commands, hub_folder):
    folder = hub_folder("olmo", {**SIZES, "tie_word_embeddings": True})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    err = commands.refused("attribute", "model=olmo1b", f"model.pretrained={folder}", *DATA)
    assert "model.safetensors: truncated or corrupt" in err


def test_weights_that_are_not_numbers_are_named(commands, hub_folder):
    """The tensor is in the message, before any work."""
    from safetensors.torch import load_file, save_file

    folder = hub_folder("olmo", {**SIZES, "tie_word_embeddings": True})
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    err = commands.refused("attribute", "model=olmo1b", f"model.pretrained={folder}", *DATA)
    assert "of the tensor 'model.layers.3.mlp.up_proj.weight' are NaN or infinite" in err
