"""Every method's answer on tiny problems is what it was (see make.py)."""

from __future__ import annotations

import pytest
from cases import CASES
from net import Net, differences, load


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """The problems' files, in a folder of their own with a cache of its own."""
    folder = tmp_path_factory.mktemp("golden")
    return Net(folder / "work", folder / "cache")


@pytest.fixture(scope="session")
def kept():
    """What was kept."""
    return load()


def test_each_case_has_values(kept):
    assert list(kept) == list(CASES)


def test_each_method_has_a_case(repository):
    named = {argument for case in CASES.values() for argument in case.arguments}
    assert {f"method={file.stem}" for file in repository.glob("conf/method/*.yaml")} <= named


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_what_it_was(name, net, kept):
    lines = differences(CASES[name], net.found(name), kept[name])
    if lines:
        pytest.fail(
            "\n".join([f"python {CASES[name].stage}.py {' '.join(CASES[name].arguments)}", *lines]), pytrace=False
        )
