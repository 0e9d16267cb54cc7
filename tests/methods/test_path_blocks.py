"""What a killed or damaged decomposition is taken up from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tdaexp.paths import blocks as path_blocks
from tdaexp.paths.blocks import add, run_steps
from tdaexp.paths.steps import steps_between
from tdaexp.runtime.errors import UserError


def taken(folder, calls):
    def one(number, sums):
        calls.append(number)
        add(sums, "total", torch.tensor(float(number)))
        return {"own": torch.tensor(2.0 * number, dtype=torch.float64)}

    return run_steps(folder, list(range(6)), {"own": ()}, one, "steps")


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "other"])
def test_damaged_sums_are_made_again(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(path_blocks, "STEPS_PER_BLOCK", 2)
    calls: list[int] = []
    straight = taken(tmp_path, calls)
    assert calls == list(range(6)) and straight["total"] == 15
    assert taken(tmp_path, calls)["total"] == 15 and len(calls) == 6  # nothing is taken twice
    file = tmp_path / "sums.npz"
    raw = file.read_bytes()
    file.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "gone": b"", "other": b"not an archive"}[harm])
    if harm == "gone":
        file.unlink()
    again = taken(tmp_path, calls)
    assert calls == [*range(6), *range(6)]
    assert all(np.array_equal(again[name], value) for name, value in straight.items())


def test_the_nearest_step_is_nearest_by_number():
    trajectory = SimpleNamespace(steps=[0, 4, 8, 12])
    with pytest.raises(UserError, match="step 99 was not recorded; the nearest is 12"):
        steps_between(trajectory, [4, 99])
