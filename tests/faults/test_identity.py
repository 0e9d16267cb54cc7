"""Kind 1: an answer that is wrong, and nothing says so. Identity is everything that decides the answer."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_models as small
import torch
from commands import REPOSITORY, TINY, only

from tdaexp import influence
from tdaexp.data.paraphrasers import LocalModel
from tdaexp.models.generate import Decoding, generate
from tdaexp.models.pretrained import Pretrained
from tdaexp.models.source import content
from tdaexp.runtime import code, digests
from tdaexp.runtime.errors import UserError


def scores(pattern: str = "outputs/attribute/*/influence.zarr") -> np.ndarray:
    return influence.scores(influence.load(only(pattern))).values


@pytest.mark.parametrize(
    "file",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
        *("chat_template.jinja", "adapter_config.json", "modeling_own.py", "code/inner.py", "more/a.jinja"),
    ],
)  # fmt: skip
def test_every_file_that_decides_the_function_or_the_text_is_part_of_a_folder(tmp_path, file):
    folder = small.llama(tmp_path / "model")
    before = content(folder)
    place = folder / file
    if place.exists():
        small.flip(place)
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text("x")
    assert content(folder) != before


def test_notes_and_other_models_are_no_part_of_a_folder(tmp_path):
    folder = small.llama(tmp_path / "model")
    before = content(folder)
    (folder / "README.md").write_text("about it")
    (folder / "training.json").write_text("{}")
    small.llama(folder / "checkpoint-10")
    assert content(folder) == before


def test_an_edited_end_token_gives_new_completions(tmp_path):
    folder = small.llama(tmp_path / "model")
    prompts = [np.array([5, 6, 7])]
    loaded = Pretrained(str(folder)).load()
    first = generate(loaded, prompts, Decoding(max_new_tokens=12), tmp_path / "cache")
    written = loaded.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    note = json.loads((folder / "generation_config.json").read_text())
    note["eos_token_id"] = [int(written[0, 4])]
    (folder / "generation_config.json").write_text(json.dumps(note))
    again = generate(Pretrained(str(folder)).load(), prompts, Decoding(max_new_tokens=12), tmp_path / "cache")
    assert len(again[0]) < len(first[0])


def test_whose_code_runs_is_part_of_a_models_identity(tmp_path):
    folder = str(small.with_own_forward(tmp_path / "model"))
    plain, own = Pretrained(folder), Pretrained(folder, trust_remote_code=True)
    assert plain.start_fingerprint() != own.start_fingerprint()


def test_a_changed_local_paraphraser_does_not_answer_from_memory(tmp_path):
    folder = small.llama(tmp_path / "model")
    before = LocalModel(str(folder)).settings()
    small.flip(folder / "model.safetensors")
    assert LocalModel(str(folder)).settings() != before


def test_a_changed_byte_of_a_trained_model_is_refused_and_what_to_delete_is_said(commands, tmp_path):
    own = [*TINY, "cache_dir=own", "dataset.query_sets=[paraphrased]", "method=dot"]
    commands.done("attribute", *own)
    weights = only("own/models/*/model/model.safetensors")
    small.flip(weights, -5)
    line = commands.refused("attribute", *own)
    assert f"{weights.parent}: model.safetensors: its checksum is wrong" in line
    assert f"delete {weights.parent} and run again" in line


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's sources, which identities are formed of."""
    shutil.copytree(code.ROOT, tmp_path / "tdaexp", ignore=shutil.ignore_patterns("__pycache__"))

    def use() -> Path:
        for name in ("_identity", "_file", "_own_file"):
            getattr(code, name).cache_clear()
        monkeypatch.setattr(code, "ROOT", tmp_path / "tdaexp")
        return tmp_path / "tdaexp"

    yield use
    for name in ("_identity", "_file", "_own_file"):
        getattr(code, name).cache_clear()


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("gradients/pair_driver.py", "np.argsort(order)", "-np.argsort(order)", True),
        ("gradients/capture.py", "values.sum()", "-values.sum()", True),
        ("objectives/base.py", "* weights).sum(1)", "* weights).sum(1) * 2", True),
        ("gradients/capture.py", "# no graph so far", "# none so far", False),
        ("gradients/capture.py", '"""Attach the', '"""Add the', False),
        ("gradients/capture.py", '"""Per-example gradients', '"""Gradients', False),
        ("report/figures.py", "import", "import os\nimport", False),
        ("app/task.py", "import", "import os\nimport", False),
        ("curvature/fit.py", "import", "import os\nimport", False),
    ],
)
def test_the_code_that_computes_is_part_of_an_identity_and_no_other(sources, file, old, new, changes):
    before = code.code_identity("tdaexp.gradients.products")
    place = sources() / file
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))
    assert (code.code_identity("tdaexp.gradients.products") != before) is changes


def test_an_edit_while_a_run_is_at_work_is_refused(sources, monkeypatch):
    place = sources() / "gradients" / "products.py"
    monkeypatch.setattr(code, "_FOUND", {place: place.stat().st_mtime_ns - 1})
    with pytest.raises(UserError, match=r"products.py: was edited while this run was at work"):
        code.code_identity("tdaexp.gradients.products")


@pytest.mark.long
def test_an_edited_sign_gives_new_numbers_from_the_same_cache(commands, sources):
    own = [*TINY, "dataset.query_sets=[paraphrased]", "method=dot"]
    commands.done("attribute", *own)
    before = scores()
    place = sources() / "gradients" / "pair_driver.py"
    text = place.read_text()
    assert "compute(plan[number])" in text
    edited = "{name: -one for name, one in compute(plan[number]).items()}"
    place.write_text(text.replace("compute(plan[number])", edited, 1))
    environment = {**os.environ, "PYTHONPATH": str(place.parents[2]), "PYTHONWARNINGS": "ignore"}
    program = [sys.executable, str(REPOSITORY / "attribute.py"), *commands.arguments([*own, "hydra.run.dir=again"])]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(scores("again/influence.zarr"), -before)


def test_a_large_file_is_read_once_and_again_when_it_was_replaced(tmp_path, monkeypatch):
    file, other, read = tmp_path / "large", tmp_path / "other", []
    file.write_bytes(b"a" * digests.LARGE)
    other.write_bytes(b"b" * digests.LARGE)
    monkeypatch.setattr(digests, "SETTLED_S", -1.0)
    monkeypatch.setattr(digests, "_of_bytes", lambda path, plain=digests._of_bytes: read.append(path) or plain(path))
    digests.keep_in(tmp_path)
    first = digests.digest(file)
    monkeypatch.setattr(digests, "_known", {})
    digests.keep_in(tmp_path)
    assert digests.digest(file) == first and len(read) == 1
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert digests.digest(file) != first and len(read) == 2
    digests.keep_in(None)
