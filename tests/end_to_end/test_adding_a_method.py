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
    """Put the page's files where it says, below a folder of their own; returns the folder with the YAML."""
    named = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    files = dict(named)
    expected = [(f"src/tdaexp/methods/{one}.py", f"conf/method/{one}.yaml") for one in ("signs", "jaccard")]
    assert list(files) == [name for pair in expected for name in pair]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(
        tdaexp.methods, "__path__", [*tdaexp.methods.__path__, str(tmp_path / "src" / "tdaexp" / "methods")]
    )
    yield tmp_path / "conf"
    for name in ("signs", "jaccard"):
        sys.modules.pop(f"tdaexp.methods.{name}", None)


@pytest.mark.long
def test_the_pages_example_runs_beside_the_others(commands, page, installed):
    (block,) = re.findall(r"Run it beside the others:\n\n```bash\n(.*?)```", page, flags=re.DOTALL)
    attribute, evaluate = (shlex.split(line)[1:] for line in block.splitlines())
    quick = ("metric.plots=false", f"--config-dir={installed}")
    commands.done(attribute[0].removesuffix(".py"), *TINY, *quick, *attribute[1:])
    subject = [text for text in TINY if text.startswith(("model.", "dataset."))]
    commands.done(evaluate[0].removesuffix(".py"), *subject, "metric.plots=false", "metric.bootstrap=20")
    found = metrics(only("outputs/evaluate/*"))
    assert {key.split("/")[0] for key in found} == {"signs", "jaccard", "full", "bm25"}
    own = influence.load(only("multirun/*/*jaccard*/influence.zarr"))
    values = own["influence"].values
    assert ((values >= 0) & (values <= 1)).all() and len(np.unique(values)) > 10
    # A query that repeats its source's words has the largest overlap with it more often than by chance.
    assert found["jaccard/paraphrased/accuracy"] > found["jaccard/paraphrased/random_accuracy"]


def test_the_gradient_method_is_short_and_meets_few_names(page):
    (text,) = re.findall(r"`src/tdaexp/methods/signs.py`:\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(text.splitlines()) < 40
    ours = re.findall(r"^from tdaexp\S* import (.*)$", text, flags=re.MULTILINE)
    assert len([name for line in ours for name in line.split(",")]) <= 6


def test_the_signs_are_those_of_autograd(commands, installed):
    quick = ("metric.plots=false", f"--config-dir={installed}", "trainer.precision=float64", "dataset.query_limit=2")
    commands.done("attribute", *TINY, *quick, "method=signs", "method.above=0", "hydra.run.dir=signs")
    found = influence.load(Path("signs/influence.zarr"))
    values = found["influence"].values
    sizes = found["size"].values
    assert (np.abs(values) <= sizes).all() and np.array_equal(values, np.round(values))


def test_the_pages_example_checks_its_keys(commands, installed):
    arguments = (*TINY, "method=jaccard", "method.rarer_then=0.3", f"--config-dir={installed}")
    assert "rarer_than" in commands.refused("attribute", *arguments)
