"""Which runs a workspace is made of: those that wandb was told of, of one project."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from tdaexp.app.config import Logger
from tdaexp.app.found import Found
from tdaexp.app.stages.dashboard import runs_in_wandb
from tdaexp.report.mirrored import Mirrored
from tdaexp.runtime.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Three runs that wandb was told of, and one that it was not."""
    for name in "abc":
        Mirrored(name, "tdaexp", None, name, "sweep", offline=True).write(tmp_path / name)
    return tmp_path


def found(folders, *names, **logger):
    stores = [folders / name / "influence.zarr" for name in names]
    config = SimpleNamespace(logger=Logger(**logger), found=Found(stores))
    return [run.id for run in runs_in_wandb(config)]


def test_runs_that_wandb_does_not_know_are_left_out_with_a_line(folders, caplog):
    assert found(folders, "a", "d", "b", "a") == ["a", "b"]
    assert caplog.messages == [f"{folders / 'd'}: not in the dashboard, wandb was not told of it (logger=wandb)"]


def test_fewer_than_two_make_no_workspace(folders):
    with pytest.raises(UserError, match=r"wandb knows 1 of those in runs; name a sweep that ran with logger=wandb"):
        found(folders, "a", "d")


def test_runs_of_another_project_are_refused(folders):
    with pytest.raises(UserError, match=r"is of project tdaexp; add logger.project=tdaexp"):
        found(folders, "a", "b", project="other")
    Mirrored("e", "tdaexp", "us", "e", None, offline=True).write(folders / "e")
    assert found(folders, "a", "e") == ["a", "e"]  # an entity that is not stated is the account's own
    with pytest.raises(UserError, match=r"is of entity us; add logger.entity=us"):
        found(folders, "a", "e", entity="them")


def test_runs_that_were_not_sent_are_named_where_the_dashboard_is(folders, caplog):
    caplog.set_level(logging.WARNING)
    sent = folders / "a" / "wandb" / "offline-run-20260101_000000-a" / "run-a.wandb.synced"
    sent.parent.mkdir(parents=True)
    sent.touch()
    assert found(folders, "a", "b", mode="online") == ["a", "b"]
    assert caplog.messages == [
        f"{folders / 'b'}: its run is not in wandb yet: wandb sync {folders / 'b'}/wandb/offline-run-*"
    ]
