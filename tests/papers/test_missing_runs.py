"""An analysis without the stores that it reads says in one line which command makes them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tdaexp.papers.base import Evidence
from tdaexp.papers.explaind_eurollm import ExplaindEurollm
from tdaexp.papers.explaind_subsampling import Subsampling
from tdaexp.papers.explaind_table1 import ExplaindTable1
from tdaexp.papers.grokking import Grokking
from tdaexp.runtime.errors import UserError

GROKKING = Grokking(grafts={"a": ["x"], "b": ["y"]}, outer="a", pipelines=["b"], donors=[1])


@pytest.mark.parametrize(
    ("analysis", "command"),
    [
        (ExplaindEurollm(), "experiment=explaind_eurollm"),
        (Subsampling(), "experiment=explaind_subsampling"),
        (ExplaindTable1(), "experiment=explaind_table1"),
        (GROKKING, "experiment=explaind_grokking"),
    ],
)
def test_a_missing_store_names_the_command_that_makes_it(analysis, command):
    with pytest.raises(UserError, match=f"runs: no store .*python attribute.py {command}") as error:
        analysis.run(Evidence(SimpleNamespace(dataset=SimpleNamespace(modulus=7)), []))
    assert "\n" not in str(error.value)


def test_the_other_weights_of_grafts_are_drawn_from_something():
    with pytest.raises(UserError, match=r"analysis\.fresh=0\.0: must be above 0, or null"):
        Grokking(grafts={"a": ["x"], "b": ["y"]}, outer="a", pipelines=["b"], donors=[1], fresh=0.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pipelines": ["c"]}, r"analysis\.pipelines: unknown graft 'c'"),
        ({"pipelines": []}, r"analysis\.pipelines=\[\]: must name at least one"),
        ({"parts": ["windos"]}, r"analysis\.parts: unknown part 'windos'; did you mean 'windows'"),
        ({"balance_every": 0}, r"analysis\.balance_every=0: must be at least 1"),
    ],
)
def test_keys_of_the_study_that_are_none(keys, message):
    with pytest.raises(UserError, match=message):
        Grokking(**{"grafts": {"a": ["x"], "b": ["y"]}, "outer": "a", "pipelines": ["b"], "donors": [1]} | keys)
