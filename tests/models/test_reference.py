"""Folders that the cases beside this checkout write, read as a user would, against their own right values."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of

from tdaexp.building.covered import checked_map
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.gradients.products import component_products
from tdaexp.models.pretrained import Pretrained

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FOLDERS = ("llama", "qwen2", "qwen3", "mistral", "olmo2", "smollm3", "phi3", "gemma2", "gemma3", "opt", "falcon",
           "gpt_neo", "mixtral", "qwen2_moe", "qwen3_moe", "custom_forward")  # fmt: skip
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases beside the checkout")


def program(name):
    spec = importlib.util.spec_from_file_location(f"cases_{name}", CASES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The models, and the rows that they are asked about: (prompt, completion, paraphrase)."""
    root, make = tmp_path_factory.mktemp("cases"), program("make")
    make.main(root, [name for name in FOLDERS if name != "custom_forward"])
    make.custom(root, make.tokenizer())
    return root, [(row["prompt"], row["completion"], row["para"]) for row in make.ROWS[:5]]


@pytest.mark.parametrize("name", FOLDERS)
def test_dots_and_cosines_are_the_reference_s(folders, name, double, monkeypatch, tmp_path):
    root, rows = folders
    trust, reference = name == "custom_forward", program("reference")
    plain = reference.AutoModelForCausalLM.from_pretrained
    # torch's grouped products, with which experts run elsewhere, take no float64
    monkeypatch.setattr(
        reference,
        "AutoModelForCausalLM",
        type("Eager", (), {"from_pretrained": partial(plain, experts_implementation="eager")}),
    )
    train, asked = [row[:2] for row in rows], [(row[0], row[2]) for row in rows[:2]]
    dot, cosine = reference.products(str(root / name), train, asked, trust=trust)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        config = Pretrained(str(root / name), trust_remote_code=trust, attn_implementation="eager")
        loaded = config.load(dtype=dtype)
        sides = [
            tokenise([Record(f"r{k}", *row) for k, row in enumerate(side)], loaded.tokenizer, template="plain")
            for side in (train, asked)
        ]
        components = checked_map(loaded)
        assert components.covered == components.total
        gradients = [gradients_of(loaded.model, side, components) for side in sides]
        pairs = np.tile(np.arange(len(train)), (len(asked), 1))
        found = {
            key: rows[:].sum(-1)
            for key, rows in component_products(*gradients, pairs, store=tmp_path / str(dtype)).items()
        }
        norms = np.sqrt(found["query_sq"][:, None] * found["train_sq"])
        assert np.abs(found["dot"] / norms - cosine).max() < tolerance
        assert np.abs(found["dot"] - dot).max() < tolerance * np.abs(dot / cosine).max()
