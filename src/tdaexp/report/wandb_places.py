"""Where wandb keeps its files: all of them within the run folder, none in the user's folders or the system's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

PLACES = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_ARTIFACT_DIR": "artifacts"}
CONFIG = {"WANDB_CONFIG_DIR": "config"}
"""The user's own settings, an entity or a server, which runs that are sent need."""


@contextlib.contextmanager
def within(folder: Path, offline: bool) -> Iterator[None]:
    """For the length of a block wandb writes below `folder/wandb` alone; the login in ~/.netrc stays where it is."""
    home = folder.absolute() / "wandb"
    wanted = {name: str(home / place) for name, place in (PLACES | CONFIG if offline else PLACES).items()}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        _import_with_temporaries_in(home / "tmp")
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_with_temporaries_in(folder: Path) -> None:
    """Import wandb, whose modules choose a folder for pictures and tables on their way, once in a process."""
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        import wandb.sdk.artifacts.artifact
        import wandb.sdk.data_types.image  # noqa: F401
    finally:
        tempfile.tempdir = before
    with contextlib.suppress(OSError):
        folder.rmdir()  # where nothing was chosen
