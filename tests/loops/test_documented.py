"""The examples of docs/callbacks.md, as they stand there."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from small import QUERIES, TEXTS, Pairs, class_losses, items, loader, net, new_model

import tdaexp


def block(repository, heading: str) -> str:
    """The code below a heading."""
    page = (repository / "docs" / "callbacks.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n.*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(repository, heading: str, names: dict) -> dict:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=".*pin_memory")  # which the Trainer asks for on any machine
        exec(compile(block(repository, heading), "docs/callbacks.md", "exec"), names)
    return names


def test_transformers(repository):
    model, tokenizer = new_model()
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "rows": items(tokenizer, TEXTS),
        "questions": items(tokenizer, QUERIES),
    }
    found = run(repository, "transformers' Trainer", {**names, "texts": TEXTS, "asked": QUERIES})
    assert found["answer"].dataset.attrs["steps"] == [2, 4, 6]
    assert np.isfinite(found["answer"].dataset["influence"].values).all()
    assert tdaexp.load("shapley").dataset["influence"].sizes["candidate"] == len(TEXTS)


def test_lightning(repository):
    found = run(repository, "Lightning", {"net": net(), "train_set": Pairs(11), "test_set": Pairs(2, seed=9)})
    assert np.isfinite(found["answer"].dataset["influence"].values).all()


def test_a_loop_of_ones_own(repository):
    model = net()
    shapley = tdaexp.InRunShapley("shapley", Pairs(2, seed=9), loss=class_losses)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names = {"tdaexp": tdaexp, "model": model, "optimizer": optimizer, "loader": loader(), "loss": class_losses}
    run(repository, "A loop of your own", {**names, "shapley": shapley})
    assert tdaexp.load("shapley").dataset["influence"].sizes["candidate"] == 11
