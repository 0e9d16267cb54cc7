"""An adapter through the commands: trained, explained as what was trained, planned; and what is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_models as small
import torch
from adapted import by_peft, gradients, write_adapter
from commands import metrics, only

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.pretrained import Pretrained

FIT = ("trainer.fit.steps=3", "trainer.fit.batch_size=4", "trainer.fit.warmup=1")
NEW = ("model.adapter=new", "model.lora.r=2", "model.lora.target_modules=[q_proj,v_proj]", *FIT)


@pytest.fixture
def place(tmp_path):
    """A model, an adapter to it, and texts."""
    model = small.llama(tmp_path / "model")
    return model, write_adapter(model, tmp_path / "adapter"), small.rows(tmp_path / "rows.jsonl")


def test_scores_are_those_of_the_adapted_model(commands, place):
    model, adapter, data = place
    commands.done("attribute", *small.arguments(adapter, data, "method=dot"))
    found = influence.load(only("outputs/attribute/*/influence.zarr"))
    tokenizer = Pretrained(str(model)).load().tokenizer
    records = [Record(row["id"], row["prompt"], row["completion"]) for row in small.ROWS]
    asked = [Record(row["id"], row["prompt"], row["para"]) for row in small.ROWS]
    theirs = by_peft(model, adapter)
    train, queries = (
        gradients(theirs, tokenise(one, tokenizer, template="plain", max_length=64)) for one in (records, asked)
    )
    places = np.array([[int(name[1:]) for name in row] for row in found["train"].values])
    wanted = np.take_along_axis((queries @ train.T).numpy(), places, 1)
    np.testing.assert_allclose(influence.scores(found).values, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_trained_found_again_and_explained(commands, place):
    model, _, data = place
    arguments = [*small.arguments(model, data, *NEW), "model.name=mine"]
    commands.done("attribute", *arguments, "method=ekfac", "plan=true")
    train = [one for one in arguments if not one.startswith(("candidates", "metric"))]
    commands.done("train", *train)
    (folder,) = json.loads(only("outputs/train/*/checkpoints.json").read_text())
    err = commands.done("attribute", *arguments, "method=ekfac")
    assert "training:" not in err and "ekfac: attributed 256 of" in err
    first = influence.scores(influence.load(only("outputs/attribute/*/influence.zarr"))).values
    assert np.isfinite(first).all() and metrics(only("outputs/attribute/*"))
    loaded = Pretrained(folder).load()
    assert loaded.base is not None and not any(torch.isnan(value).any() for value in loaded.model.state_dict().values())


def test_an_edited_factor_gives_other_scores(commands, place):
    _, adapter, data = place

    def scores():
        commands.done("attribute", *small.arguments(adapter, data, "method=dot", "hydra.run.dir=run"))
        return influence.scores(influence.load(only("run/influence.zarr"))).values

    first, note = scores(), adapter / "adapter_config.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "lora_alpha": 7}))
    assert np.abs(scores() - first).max() > 1e-3 * np.abs(first).max()


def test_a_missing_base_is_one_line(commands, place):
    _, adapter, data = place
    note = adapter / "adapter_config.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "base_model_name_or_path": "/nowhere"}))
    line = commands.refused("attribute", *small.arguments(adapter, data, "method=dot"))
    assert "an adapter whose base is missing" in line and f"model.pretrained=BASE model.adapter={adapter}" in line
