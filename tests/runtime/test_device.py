import pytest
import torch

from tdaexp.runtime.device import ACCELERATORS, PRECISIONS, resolve_device, resolve_dtype
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


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision_names_the_torch_type(name):
    assert resolve_dtype(name) is getattr(torch, name)
