import pytest
import torch

from tdaexp.runtime.device import resolve_device, resolve_dtype, set_threads
from tdaexp.runtime.errors import UserError


def test_cpu_is_always_there_and_auto_follows_the_machine(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_asking_for_an_absent_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator=cpu") as error:
        resolve_device("cuda")
    assert "\n" not in str(error.value)


def test_misspelt_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        resolve_device("cudaa")
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        resolve_dtype("float16b")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_precision_names_the_torch_type(name):
    assert resolve_dtype(name) is getattr(torch, name)


def test_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    set_threads(0)
    set_threads(3)
    assert asked == [3]
    with pytest.raises(UserError, match=r"trainer\.threads=-1"):
        set_threads(-1)
