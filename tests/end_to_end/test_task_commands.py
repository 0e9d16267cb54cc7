"""Classification tasks through the commands: trained with their recipes, recorded, found again."""

from __future__ import annotations

import pytest
from commands import metrics, only

from tdaexp.training.trajectory import Trajectory

ADDITION = ("model=grokking", "dataset=modular_addition", "dataset.train=60", "dataset.test=20", "model.hidden=8",
            "model.inner=16", "trainer.fit.steps=6")  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_is_trained_by_its_recipe_and_recorded(commands, folder):
    err = commands.done("train", *ADDITION, f"cache_dir={folder}/cache", "hydra.run.dir=run")
    assert "trajectory: 7 states" in err
    found = metrics(folder / "run")
    assert found["train/steps"] == 6 and 0 <= found["test/accuracy"] <= 1 and found["test/loss"] > 0
    trajectory = Trajectory(only("cache/models/grokking-*/trajectory"))
    note = trajectory.settings
    assert (note.optimizer, note.betas, note.every, note.examples) == ("adamw", [0.98, 0.99], 1, 60)
    assert set(note.decay.values()) == {4.0} and trajectory.lr(0) == trajectory.lr(5) == 1e-3
    assert list(trajectory.batch(2)[0]) == list(range(60))  # full batches
    again = commands.done("train", *ADDITION, f"cache_dir={folder}/cache", "hydra.run.dir=again")
    assert "trajectory:" not in again and metrics(folder / "again") == found  # from the cache


def test_a_model_s_recipe_gives_way_to_the_command_line(commands, folder):
    commands.done("train", *ADDITION, "trainer.fit.optimizer=sgd", f"cache_dir={folder}/cache", "hydra.run.dir=run")
    assert Trajectory(only("cache/models/grokking-*/trajectory")).settings.optimizer == "sgd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=grokking",), "model=grokking: cannot read text; choose dataset=modular_addition"),
        (("dataset=modular_addition",), "dataset=ModularAddition: is not text; choose model=grokking"),
        (("trainer.fit.record=1",), "trainer.fit.clip=1: clipping makes an example"),
        (("model=mnist_cnn", "dataset=digits"), "set model.padding=1"),
        ((*ADDITION, "trainer.fit.clip=1"), "set trainer.fit.clip=0"),
        ((*ADDITION, "trainer.fit.optimizer=adagrad"), "trainer.fit.optimizer: unknown value 'adagrad'"),
        ((*ADDITION, "dataset.train=6430"), "the data has 6441 examples in all"),
    ],
)
def test_mistakes_are_one_line(commands, folder, arguments, message):
    assert message in commands.refused("train", *arguments, f"cache_dir={folder}/cache")
