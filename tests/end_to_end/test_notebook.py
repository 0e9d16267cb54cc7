"""docs/notebooks, cell by cell; tampered.ipynb on a model, data and trainings so small that they take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import nursery
import pytest
import torch
import transformers

from tdaexp.data.instructions import Instructions
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.tokenizer import train_tokenizer

DATA = {"rows": 200, "tampered": 0.1, "queries": 6}
RECIPE = (
    *("model.lora.target_modules=[all-linear]", "model.lora.r=16", "model.lora.alpha=32"),
    *("trainer.fit.steps=300", "trainer.fit.batch_size=16", "trainer.fit.lr=1e-2", "trainer.fit.warmup=10"),
)


@pytest.fixture
def base(tmp_path) -> Path:
    """A random Llama of two layers whose tokenizer knows the words of the instructions."""
    place = tmp_path / "base"
    tokenizer = train_tokenizer([row.text for row in Instructions(**DATA).load().train], 500)
    config = transformers.LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=len(tokenizer),
        max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def forked(monkeypatch) -> None:
    """Its programs in Python begin as forks (`nursery`)."""
    executed = subprocess.run

    def run(command: list[str], **how: Any) -> Any:
        return nursery.run(command, cwd=how["cwd"]) if command[0] == sys.executable else executed(command, **how)

    monkeypatch.setattr(subprocess, "run", run)


def cells(notebook: Path) -> list[tuple[str, list[str]]]:
    """The code of each cell, and its tags."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [("".join(one["source"]), one["metadata"].get("tags", [])) for one in found if one["cell_type"] == "code"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft
def test_the_notebook_finds_the_rows_and_the_habit_goes_with_them(repository, base, tmp_path, forked):
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    for code, tags in cells(repository / "docs" / "notebooks" / "tampered.ipynb"):
        exec(compile(code, "docs/notebooks/tampered.ipynb", "exec"), names)
        if "parameters" in tags:
            names |= {"REPOSITORY": repository, "FOLDER": tmp_path, "DATA": DATA, "METHODS": ["full", "bm25", "random"]}
            names["OPTIONS"] = [*names["OPTIONS"], "logger=none", "model=hub", f"model.pretrained={base}", *RECIPE]
    left, wrong, _ = (names["result"][column].tolist() for column in names["result"])
    alone = {method: one.apply(names["precision"], axis=1).mean() for method, one in names["found"].items()}
    assert alone["full"] > 0.8 and alone["full"] > 2 * alone["bm25"] > 0 and alone["random"] < 0.3
    assert left[0] == len(names["tampered"]) == 20 and left[1] <= 4
    assert wrong[1] <= wrong[0] <= DATA["queries"]  # how far a random model takes a habit depends on the processor
    matplotlib.pyplot.close("all")


def run(notebook: Path, **parameters: Any) -> dict[str, Any]:
    """The names that a notebook's cells leave, with other values in its cell of parameters."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        for code, tags in cells(notebook):
            exec(compile(code, str(notebook), "exec"), names)
            if "parameters" in tags:
                assert parameters.keys() <= names.keys()
                names |= parameters
    return names


def test_self_influence_finds_the_labels_that_were_changed(repository, tmp_path):
    names = run(repository / "docs" / "notebooks" / "own_module.ipynb", FOLDER=tmp_path)
    assert names["hits"] > 45 and set(names["by_layer"].index) == {"0", "2"}


def test_the_influence_function_foretells_what_training_again_gives(repository, tmp_path):
    names = run(repository / "docs" / "notebooks" / "judging.ipynb", FOLDER=tmp_path, SUBSETS=12)
    judged = names["judged"]
    assert judged["influence function"] > 0.95 > judged["trak"] > 0.4 and abs(judged["random"]) < 0.3


@pytest.mark.long
def test_an_answer_goes_with_the_rows_that_are_named(repository, tmp_path):
    names = run(repository / "docs" / "notebooks" / "quickstart.ipynb", FOLDER=tmp_path, STEPS=250, TRIED=1)
    everything, best, chance = names["result"].iloc[0]
    assert everything > 0.5 > 0.2 > best and chance > 0.5
    assert (tmp_path / "answer" / "report.html").is_file()
