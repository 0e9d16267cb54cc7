"""A working folder per test; trained models and stored products are shared."""

from pathlib import Path

import pytest
from commands import Commands


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for trained models and stored products."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Commands:
    """The commands, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Commands(cache, capfd)
