"""The commands, in an empty working folder, as the tests of whole runs have them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
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
