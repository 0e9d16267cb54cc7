"""A measurement of the user's own, by the commands: named in the configuration, computed again when it is edited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import TINY, only, rows

from tdaexp import influence

OWN = ("def chosen(logits, targets, weights):\n"
       "    logs = logits.log_softmax(2).gather(2, targets[..., None])[..., 0]\n"
       "    return (logs * weights).sum(1) * 1.0\n")  # fmt: skip


@pytest.mark.parametrize("task", ["text", "classifier"])
@pytest.mark.long
def test_a_function_in_the_working_directory(task, commands):
    keys = (*TINY, "method=ekfac", "dataset.query_limit=4", "dataset.query_sets=[paraphrased]", "metric.plots=false")
    if task == "classifier":
        keys = ("model=mnist_cnn", "dataset=digits", "model.padding=1", "dataset.train=60", "dataset.test=4",
                "trainer.fit.batch_size=30", "trainer.fit.steps=3", "method=ekfac", "metric.plots=false")  # fmt: skip
    Path("my_measurements.py").write_text(OWN, encoding="utf-8")
    own = "method.measurement=my_measurements:chosen"
    commands.done("attribute", *keys, "hydra.run.dir=usual")
    code, err = commands.process("attribute", *keys, own, "-m", "hydra.sweep.dir=sweep")
    assert code == 0, err
    scores = [influence.load(only(f"{folder}/influence.zarr")).influence for folder in ("usual", "sweep/0*")]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-5 * float(abs(scores[0]).max()))
    if task == "classifier":
        return
    code, err = commands.process("attribute", *keys, own, "-m", "hydra.sweep.dir=sweep", "resume=true")
    assert code == 0 and "finished before, skipped" in err
    Path("my_measurements.py").write_text(OWN.replace("* 1.0", "* 2.0"), encoding="utf-8")  # as long as before
    code, err = commands.process("attribute", *keys, own, "-m", "hydra.sweep.dir=sweep", "resume=true")
    assert code == 0 and "finished before" not in err and len(rows(Path("sweep"))) == 1
    doubled = influence.load(only("sweep/0*/influence.zarr")).influence
    np.testing.assert_allclose(doubled, 2 * scores[1], rtol=1e-4, atol=1e-5 * float(abs(scores[0]).max()))


def test_mistakes_are_one_line_and_before_anything_is_trained(commands):
    line = commands.refused("attribute", *TINY, "method=cg", "method.measurement=nowhere_at_all:chosen")
    assert "method.measurement=nowhere_at_all:chosen: cannot import 'nowhere_at_all'" in line
    line = commands.refused("attribute", *TINY, "method=ekfac", "method.measurement=chosen")
    assert "unknown measurement 'chosen'" in line and "module:function" in line
