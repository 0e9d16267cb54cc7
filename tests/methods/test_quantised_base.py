"""Adapters beside a base of four or eight bits: explained, trained, found again; what cannot be is refused."""

from __future__ import annotations

import importlib.metadata
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapted import gradients, write_adapter
from peft import PeftModel
from tiny_problem import with_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.lora import Lora
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.quantised import kind_of
from tdaexp.runtime.errors import UserError
from tdaexp.training.history import SavedCheckpoints
from tdaexp.training.settings import FitSettings
from tdaexp.training.trained import Tokenisation, trained

BY_BITSANDBYTES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def place(loaded, tmp_path_factory):
    """Folders with the tiny model, and with an adapter to it."""
    folder = tmp_path_factory.mktemp("quantised")
    with quiet_transformers():
        loaded.model.save_pretrained(folder / "base")
        loaded.tokenizer.save_pretrained(folder / "base")
    return str(folder / "base"), str(write_adapter(folder / "base", folder / "adapter"))


def by_transformers(base, kind):
    """The base as transformers alone reads it, in the arithmetic that has gradients."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = BitsAndBytesConfig(**BY_BITSANDBYTES[kind])
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map={"": "cpu"})
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_products_are_those_of_autograd(kind, place, make_problem, compose, tmp_path):
    mine = Pretrained(place[0], adapter=place[1], quantised=kind).load()
    problem = with_model(make_problem(tmp_path), mine)
    with torch.no_grad():  # a pass that asks for no gradient does not change what the next ones compute with
        before = mine.model(torch.arange(3, 12)[None]).logits
    found = influence.scores(compose("method=dot").attribute(problem)).values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(by_transformers(place[0], kind), place[1], is_trainable=True).eval()
    dot = (gradients(model, problem.queries).double() @ gradients(model, problem.train).double().T).numpy()
    expected = np.take_along_axis(dot, problem.pairs, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(dot).max())
    plain = Pretrained(place[0], adapter=place[1]).load()
    with torch.no_grad():
        torch.testing.assert_close(mine.model(torch.arange(3, 12)[None]).logits, before)
        assert not torch.equal(plain.model(torch.arange(3, 12)[None]).logits, before)
    assert mine.fingerprint != plain.fingerprint


def test_a_base_that_is_stored_so_needs_no_key(place, tmp_path):
    mine = Pretrained(place[0], adapter=place[1], quantised="nf4").load()
    with quiet_transformers():
        by_transformers(place[0], "nf4").save_pretrained(tmp_path / "base")
        mine.tokenizer.save_pretrained(tmp_path / "base")
    adapter = write_adapter(place[0], tmp_path / "adapter", stated=str(tmp_path / "base"))
    stored = Pretrained(str(adapter)).load()
    with torch.no_grad():
        torch.testing.assert_close(*(one.model(torch.arange(3, 12)[None]).logits for one in (mine, stored)))
    assert kind_of(stored.model) is None
    with pytest.raises(UserError, match="quantised matrices have no gradients"):
        Pretrained(str(tmp_path / "base")).load()
    with pytest.raises(UserError, match=r"model.quantised: .* is stored in few bits already"):
        Pretrained(str(adapter), quantised="int8").load()


def test_an_adapter_is_trained_on_one_and_found_with_it(place, tmp_path):
    records = [Record(str(number), "Where is it?", f"in town {number}") for number in range(6)]
    config = Pretrained(place[0], name="new", adapter="new", quantised="nf4", lora=Lora(r=2, target_modules=["q_proj"]))
    settings = FitSettings(steps=4, batch_size=2, warmup=0, checkpoint_every=2, keep="all")
    found = trained(config, records, settings, Tokenisation("plain", 64), cache_dir=tmp_path, seed=0)
    assert kind_of(found.model) == "nf4"
    moments = SavedCheckpoints(found, torch.device("cpu"), torch.float32).moments(None, 0)
    assert len(moments) == 2 and kind_of(moments[0].load()) == "nf4"
    plain = trained(replace(config, quantised=None), records, settings, Tokenisation("plain", 64), cache_dir=tmp_path,
                    seed=0)  # fmt: skip
    assert plain.fingerprint != found.fingerprint and kind_of(plain.model) is None


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"adapter": None}, "quantised matrices have no gradients; name an adapter"),
        ({"merge_adapter": True}, "an adapter is not merged into the quantised matrices"),
        ({"quantised": "nf5"}, "model.quantised: unknown value 'nf5'; did you mean 'nf4'"),
    ],
)
def test_what_is_refused(keys, message, place):
    with pytest.raises(UserError, match=message):
        Pretrained(place[0], **{"adapter": place[1], "quantised": "nf4", **keys}).load()


def test_without_the_library(place, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"need the package bitsandbytes; pip install 'tdaexp\[quantised\]'"):
        Pretrained(place[0], adapter=place[1], quantised="nf4").load()
