"""The example of docs/adding-a-method.md, as it stands there, through the commands that stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, metrics, only

import tdaexp.methods
from tdaexp import influence


@pytest.fixture
def page(repository) -> str:
    return (repository / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def installed(page, tmp_path, monkeypatch) -> Path:
    """Put the page's two files where it says, below a folder of their own; returns the folder with the YAML."""
    named = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    files = dict(named)
    assert list(files) == ["src/tdaexp/methods/jaccard.py", "conf/method/jaccard.yaml"]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(
        tdaexp.methods, "__path__", [*tdaexp.methods.__path__, str(tmp_path / "src" / "tdaexp" / "methods")]
    )
    yield tmp_path / "conf"
    sys.modules.pop("tdaexp.methods.jaccard", None)


def test_the_pages_example_runs_beside_the_others(commands, page, installed):
    (block,) = re.findall(r"Run it beside the others:\n\n```bash\n(.*?)```", page, flags=re.DOTALL)
    attribute, evaluate = (shlex.split(line)[1:] for line in block.splitlines())
    quick = ("metric.plots=false", f"--config-dir={installed}")
    commands.done(attribute[0].removesuffix(".py"), *TINY, *quick, *attribute[1:])
    subject = [text for text in TINY if text.startswith(("model.", "dataset."))]
    commands.done(evaluate[0].removesuffix(".py"), *subject, "metric.plots=false", "metric.bootstrap=20")
    found = metrics(only("outputs/evaluate/*"))
    assert {key.split("/")[0] for key in found} == {"jaccard", "full", "bm25"}
    own = influence.load(only("multirun/*/*jaccard*/influence.zarr"))
    values = own["influence"].values
    assert ((values >= 0) & (values <= 1)).all() and len(np.unique(values)) > 10
    # A query that repeats its source's words has the largest overlap with it more often than by chance.
    assert found["jaccard/paraphrased/accuracy"] > found["jaccard/paraphrased/random_accuracy"]


def test_the_pages_example_checks_its_keys(commands, installed):
    arguments = (*TINY, "method=jaccard", "method.rarer_then=0.3", f"--config-dir={installed}")
    assert "rarer_than" in commands.refused("attribute", *arguments)
