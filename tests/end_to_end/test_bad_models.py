"""Models that cannot be had, and devices that are too small: one line each, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from commands import REPOSITORY, TINY
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import tdaexp.models.source as hub
from tdaexp.app import main
from tdaexp.data.biographies import Biographies
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.scratch import Scratch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DATA = ("dataset.people=6", "metric.plots=false", "metric.bootstrap=10", "model.expected_components=null")
ONE_LAYER = "model.shape.num_hidden_layers=1"  # of the plan that is told before the hub is asked
REMOTE = ("model=olmo1b", "model.pretrained=tdaexp-no-such-owner/model", ONE_LAYER, *DATA)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A model's folder with two shards of which the second is missing."""
    folder = tmp_path_factory.mktemp("hub")
    start = Scratch("olmo", SIZES, vocab_size=300).start([record.text for record in Biographies(people=6).load().train])
    with quiet_transformers():
        start.model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    place = {name: f"model-0000{1 + (k % 2)}-of-00002.safetensors" for k, name in enumerate(names)}
    first = {name: tensors[name] for name in names if place[name].startswith("model-00001")}
    save_file(first, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


@pytest.mark.parametrize("stage", ["train", "attribute"])
def test_a_missing_shard(commands, sharded, stage):
    err = commands.refused(stage, "model=olmo1b", f"model.pretrained={sharded}", *DATA[: 4 if stage != "train" else 1])
    assert "the shard model-00002-of-00002.safetensors is missing" in err


def test_a_hub_id_without_network(commands):
    err = commands.refused("attribute", *REMOTE)
    assert "the hub cannot be reached and the model is not in the local cache" in err
    assert "set model.pretrained=FOLDER" in err


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, errors.GatedRepoError, "the repository is gated; accept its terms on its page, then run `hf auth login`"),
        (403, errors.GatedRepoError, "the repository is gated"),
        (404, errors.RevisionNotFoundError, "(revision step-7): the hub knows no such revision; check model.revision"),
        (404, errors.RepositoryNotFoundError, "the hub knows no such repository"),
        (500, errors.HfHubHTTPError, "set model.pretrained=FOLDER"),
    ],
)
def test_answers_of_the_hub(commands, monkeypatch, status, kind, message):
    def refuse(*_, **__):
        response = httpx.Response(status, request=httpx.Request("GET", "http://hub"))
        raise kind(f"{status} Client Error\nRequest ID: 1", response=response)

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    assert message in commands.refused("attribute", *REMOTE, "model.revision=step-7")


@pytest.mark.long
def test_a_device_that_is_too_small_is_told_before_loading(commands, capfd):
    """By `plan=true`, and by a run: here the model is not even there."""
    small = ("model=olmo1b", "model.shape.num_hidden_layers=4", "dataset=biographies", "trainer.accelerator=cpu",
             "trainer.device_gb=1")  # fmt: skip
    arguments = ["attribute.py", *small, "plan=true", "method=select", "logger=none"]
    assert main("attribute", REPOSITORY / "conf", arguments) == 0
    assert "too small: stage " in capfd.readouterr().out
    code, err = commands("attribute", *small, "method=select", "model.pretrained=tdaexp-no-such-owner/model")
    assert code == 2
    assert err.index("too small: stage ") < err.index("cannot be reached")


def test_work_that_runs_out_of_memory_for_good(commands, monkeypatch):
    """Here completions, whose batches are not cut by themselves."""
    import torch

    from tdaexp.models import generate

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand so on")

    monkeypatch.setattr(generate, "_complete", full)
    err = commands.refused("attribute", *TINY, "decoding.max_new_tokens=5", "method=bm25", "metric.plots=false")
    assert "out of memory in work that cannot be cut smaller" in err and "decoding.batch_size" in err
