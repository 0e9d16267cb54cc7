"""Shared set-up: one thread per process, nothing online."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import gc
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from commands import Commands
from nursery import intercept
from parsing import parsed_once
from threadpoolctl import threadpool_limits
from torch import Tensor

from tdaexp.runtime import digests

if TYPE_CHECKING:
    from transformers import PreTrainedModel

torch.set_num_threads(1)
threadpool_limits(1)  # a plugin of pytest may have imported numpy before the environment was set above
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background, whose programs would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
intercept()
REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be searched for garbage again and again, nor all else as often as usual."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Commands that run inside a test set up logging, and where digests are kept, for the process: undo it after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    digests.keep_in(None)


@pytest.fixture(scope="session", autouse=True)
def quick_yaml() -> Iterator[None]:
    """Configuration files are parsed once."""
    with parsed_once():
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for trained models and stored products, which whole runs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def commands(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Commands:
    """The commands, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Commands(cache, capfd)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs begin as a user's do, by their own imports, not as forks of one that has done them (`nursery`)."""
    monkeypatch.setenv("TDAEXP_NURSERY", "0")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data beside the checkout; tests that need it skip where it is missing."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def models() -> Callable[..., PreTrainedModel]:
    """Tiny random models by variant and dtype, each built once."""
    from gradient_oracle import shared_model

    return shared_model


@pytest.fixture
def exact_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 nothing is rounded to float32. Attention of BLOOM and routers of experts ask for a softmax in float32,
    which rounds a row by its place in the batch (the vector unit's body or its tail, other ones on other processors).
    """
    softmax = torch.nn.functional.softmax

    def exact(values: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(values, dim, _stacklevel, values.dtype if values.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.nn.functional, "softmax", exact)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout: conf/ and the three commands."""
    return REPOSITORY
