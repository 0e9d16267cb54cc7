import dataclasses

import pytest

from tdaexp.runtime.errors import UserError
from tdaexp.training.settings import FitSettings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1), ("batch_size", 0), ("lr", 0.0), ("lr", float("nan")), ("lr", float("inf")),
        ("warmup", -1), ("weight_decay", -0.1), ("checkpoint_every", 0), ("clip", -1.0),
        ("clip", float("nan")),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(key, value):
    with pytest.raises(UserError, match=rf"trainer\.fit\.{key}={value}"):
        FitSettings(**{key: value})


def test_keep_is_one_of_two_words():
    with pytest.raises(UserError, match="did you mean 'all'"):
        FitSettings(keep="alll")


def test_what_decides_the_weights_is_all_but_the_saving():
    base = FitSettings()
    changed = {"steps": 1, "batch_size": 1, "lr": 1.0, "warmup": 1, "weight_decay": 1.0, "clip": 2.0}
    for key, value in changed.items():
        assert dataclasses.replace(base, **{key: value}).deciding() != base.deciding()
    assert FitSettings(checkpoint_every=7, keep="all").deciding() == base.deciding()
    assert set(base.deciding()) == set(changed)
