"""Measurements named as `module:function`: found, told apart by their source, and refused in one line."""

from __future__ import annotations

import sys

import pytest
import torch

from tdaexp.methods.cg import CG
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.multistage import MultiStage
from tdaexp.objectives.measurements import named, sources
from tdaexp.objectives.own_function import imported
from tdaexp.runtime import own_module as room
from tdaexp.runtime.errors import UserError

LOGITS = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGETS = torch.tensor([[1, 2, 3, 0], [6, 0, 0, 0], [5, 5, 0, 0]])
WEIGHTS = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).double()
SUM = "def total(logits, targets, weights):\n    return (logits.sum(2) * weights).sum(1)\n"


def forget() -> None:
    """As a new process would be."""
    imported.cache_clear()
    for name in [*room._READ, "mine", "my_package"]:
        sys.modules.pop(name, None)
    room._READ.clear()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


def write(folder, text, name="mine"):
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_a_function_in_the_working_directory(folder):
    write(folder, SUM)
    path = list(sys.path)
    values = named("mine:total")(LOGITS, TARGETS, WEIGHTS)
    torch.testing.assert_close(values, (LOGITS.sum(2) * WEIGHTS).sum(1))
    assert sys.path == path


def test_a_function_in_a_package(folder):
    (folder / "my_package").mkdir()
    write(folder, "", "my_package/__init__")
    write(folder, SUM, "my_package/my_module")
    assert named("my_package.my_module:total")(LOGITS, TARGETS, WEIGHTS).shape == (3,)


@pytest.mark.parametrize("method", [EKFAC, MultiStage, CG])
def test_an_edited_function_has_other_stores(method, folder):
    def key():
        forget()
        one = method(measurement="mine:total")
        if isinstance(one, CG):
            return one.identity("cg")[2:]
        second = type("Stage", (), {"loaded": type("L", (), {"fingerprint": "f"}), "examples": _Examples()})
        problem = type("Problem", (), {"curvature_examples": _Examples()})
        return one._identity(problem if isinstance(one, EKFAC) else second, ["a"])

    write(folder, SUM)
    first = key()
    assert key() == first
    write(folder, SUM.replace("sum(2)", "max(2)[0]"))  # a file of another length, then one of the same
    second = key()
    write(folder, SUM.replace("sum(2)", "min(2)[0]"))
    assert len({str(first), str(second), str(key())}) == 3


class _Examples:
    def fingerprint(self) -> str:
        return "e"


def test_what_runs_is_what_was_hashed(folder):
    """Python's own cache of compiled files knows a file by its size and the second in which it was written."""
    write(folder, SUM.replace("sum(2)", "max(2)[0]"))
    one = named("mine:total")(LOGITS, TARGETS, WEIGHTS)
    forget()
    write(folder, SUM.replace("sum(2)", "min(2)[0]"))
    two = named("mine:total")(LOGITS, TARGETS, WEIGHTS)
    torch.testing.assert_close(two, (LOGITS.min(2)[0] * WEIGHTS).sum(1))
    assert not torch.equal(one, two)


def test_in_one_process_it_stays_what_it_was(folder):
    write(folder, SUM)
    before = sources("mine:total")
    write(folder, SUM + "# more\n")
    assert sources("mine:total") == before and sources("log_likelihood") == []


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (SUM, "mine:totla", "mine: unknown function 'totla'; did you mean 'total'"),
        (SUM, "mine:", "must be module:function"),
        (SUM, "mine.py:total", "cannot import 'mine.py': ModuleNotFoundError"),
        (SUM, "./mine:total", "must be module:function"),
        (SUM, "nowhere:total", "cannot import 'nowhere'; no such module in "),
        ("import nothing_of_the_kind\n", "mine:total", r"cannot import 'mine': ModuleNotFoundError.*mine.py, line 1"),
        ("def total(:\n", "mine:total", "cannot import 'mine': SyntaxError"),
        ("raise SystemError('no')\n", "mine:total", r"SystemError: no \(mine.py, line 1\)"),
        ("def total(logits, targets):\n    return 1\n", "mine:total", "must take .logits .B, L, V.*too many"),
        ("total = 3\n", "mine:total", "unknown function 'total'"),
    ],
)
def test_what_cannot_be_a_measurement(text, name, message, folder):
    write(folder, text)
    with pytest.raises(UserError, match=f"method.measurement={name}: .*{message}|method.measurement={name}: {message}"):
        EKFAC(measurement=name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("logits.sum()", r"returned \[\] float64 for 3 queries"),
        ("logits.sum(2)", r"returned \[3, 4\] float64"),
        ("logits.argmax(2).sum(1)", r"returned \[3\] int64"),
        ("1.0", "returned a float"),
        ("logits.sum((1, 2)) / 0 * 0", "is nan for 3 of 3 queries"),
        ("logits.sum((1, 2)).detach()", "does not depend on the logits"),
        ("logits.sum(7)", r"failed: IndexError.*mine.py, line 2"),
    ],
)
def test_what_a_measurement_may_not_return(value, message, folder):
    write(folder, f"def total(logits, targets, weights):\n    return {value}\n")
    with pytest.raises(UserError, match=message):
        named("mine:total")(LOGITS.clone().requires_grad_(), TARGETS, WEIGHTS)
