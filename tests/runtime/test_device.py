import os

import pytest
import torch

from tdaexp.runtime.device import ACCELERATORS, PRECISIONS, deterministic, resolve_device, resolve_dtype
from tdaexp.runtime.errors import UserError


def test_cpu_is_always_there_and_auto_follows_the_machine(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_every_accelerator_is_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {resolve_device(name).type for name in ACCELERATORS} == {"cpu", "cuda"}


def test_asking_for_an_absent_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator=cpu") as error:
        resolve_device("cuda")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted({*PRECISIONS} - {"auto"}))  # which is settled with the model
def test_precision_names_the_torch_type(name):
    assert resolve_dtype(name) is getattr(torch, name)


def test_determinism_is_for_cuda_alone_and_is_taken_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def state():
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.allow_tf32

    before = state()
    with deterministic(torch.device("cpu")):
        assert state() == before
    with deterministic(torch.device("cuda")):
        assert state() == (True, True, False) and "CUBLAS_WORKSPACE_CONFIG" in os.environ
    assert state() == before != (True, True, False)
