"""Folders that the cases beside this checkout write, read as a user would, against their own right values."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", FOLDERS)
def test_dots_and_cosines_are_the_reference_s(folders, name, dtype, tolerance, request, monkeypatch, tmp_path):
    if dtype == torch.float64:
        request.getfixturevalue("double")
    root, rows = folders
    trust, reference = name == "custom_forward", program("reference")
    # torch's grouped products, with which experts run elsewhere, take no float64
    load = partial(reference.AutoModelForCausalLM.from_pretrained, experts_implementation="eager")
    monkeypatch.setattr(reference, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=load))
    train, asked = [row[:2] for row in rows], [(row[0], row[2]) for row in rows[:2]]
    dot, cosine = reference.products(str(root / name), train, asked, trust=trust)
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
    products = component_products(*gradients, pairs, store=tmp_path / "products")
    found = {key: values[:].sum(-1) for key, values in products.items()}
    norms = np.sqrt(found["query_sq"][:, None] * found["train_sq"])
    assert np.abs(found["dot"] / norms - cosine).max() < tolerance
    assert np.abs(found["dot"] - dot).max() < tolerance * np.abs(dot / cosine).max()
