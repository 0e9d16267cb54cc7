"""Kind 4 as a property: whatever value any key has, a command ends in 0 or in one line and 2, never in a traceback.

The values are bad ones for every key of the composed configuration. What would take long or leave this machine is not
reached: the commands are plans of `method=random`, which build the model without data and read the data.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from commands import REPOSITORY, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdaexp.app.check import Checker, places
from tdaexp.app.compose import open_composer
from tdaexp.app.config import ROOTS
from tdaexp.app.job import build
from tdaexp.runtime.errors import UserError

BAD = [
    "-1",
    "0",
    "1e400",
    "nan",
    "-inf",
    "99999999999999999999",
    "0.5",
    "null",
    "true",
    "''",
    "[]",
    "{}",
    "[1,a]",
    "[[]]",
    "{a: 1}",
]
BAD += [
    "x y (1)",
    "日本=,",
    "../../x",
    "a\\nb",
    "*",
    "'\\'",
    "${nothing}",
    "${seed}",
    "/etc/passwd",
    "x" * 300,
    "~",
    "~/x",
]
METHODS = sorted(file.stem for file in (REPOSITORY / "conf" / "method").glob("*.yaml"))


def keys_of(node: object, path: tuple[str, ...] = ()) -> list[str]:
    """Every key below a configuration's node, groups included."""
    if not isinstance(node, dict):
        return []
    found = [".".join((*path, key)) for key in node]
    return found + [key for name, child in node.items() for key in keys_of(child, (*path, name))]


@pytest.fixture(scope="module")
def composed():
    """The default configuration of `attribute.py` as plain values."""
    from omegaconf import OmegaConf

    with open_composer("attribute", REPOSITORY / "conf") as composer:
        return OmegaConf.to_container(composer.compose(["logger=none", *TINY]), resolve=False)


def test_every_key_takes_any_value_or_refuses_it_in_a_line(commands, composed):
    """As a person would type it: draws of key and value, the same in every run."""
    keys = [key for key in keys_of({k: v for k, v in composed.items() if k != "hydra"}) if not key.startswith("cache")]
    draw = random.Random(0)
    for key in draw.sample(keys, 12):
        value = draw.choice(BAD)
        code, err = commands("attribute", "method=random", *TINY, "plan=true", f"{key}={value}")
        assert code in (0, 2), (key, value, err)
        assert code == 0 or commands.one_line(code, err), (key, value, err)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["../x", "~/x", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_is_checked_without_a_traceback(composed, data):
    """Below the grammar of options, where a YAML file can put anything: checks and constructors of every class."""
    from omegaconf import OmegaConf

    own = {k: v for k, v in composed.items() if k != "hydra"}
    key = data.draw(st.sampled_from(keys_of(own)))
    value = data.draw(VALUES)
    config = OmegaConf.create(own)
    try:
        OmegaConf.update(config, key, value, merge=False)
    except Exception:
        return  # OmegaConf has no place for it: neither has a file
    runtime = OmegaConf.create({"runtime": {"choices": {"method": "select"}, "config_sources": []}})
    try:
        job = build("attribute", [], config, ("tdaexp",), lambda path: "x.yaml", runtime)
    except UserError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 2_000
    else:
        assert job.fingerprint


@pytest.mark.parametrize("stage", sorted(ROOTS))
def test_every_place_of_the_schema_can_be_named(stage):
    assert places(ROOTS[stage])["steps"] == "trainer.fit.steps"
    assert Checker(lambda path: "x", places=places(ROOTS[stage]))._unknown("steps", {}, ("trainer",)).args


@pytest.mark.parametrize("method", METHODS)
def test_bad_values_of_every_methods_own_keys(method):
    """Each key of each method, with each bad value: refused in a line, or taken."""
    import yaml

    node = yaml.safe_load((REPOSITORY / "conf" / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
    node.pop("defaults", None)
    if "_target_" not in node:
        pytest.skip("made of another method's file")
    checker = Checker(lambda path: str(Path("x.yaml")))
    cls = checker.target(node, ("method",))
    plain = {key: None if isinstance(value, str) and "${" in value else value for key, value in node.items()}
    for key in set(plain) - {"_target_"}:
        for value in (
            -1,
            0,
            10**30,
            float("inf"),
            float("nan"),
            "",
            "x",
            [],
            [1, "a"],
            [[]],
            ["x", {}],
            {},
            {"a": 1},
            None,
            True,
            "\ud800",
        ):
            try:
                checker.build(cls, {**plain, key: value}, ("method",))
            except UserError as error:
                assert "\n" not in str(error)
