"""Reading a trajectory: one line for whatever is missing or damaged."""

from __future__ import annotations

import shutil

import pytest
from tasks import OPTIMISERS, recorded, settings

from tdaexp.runtime.errors import UserError
from tdaexp.training.trajectory import Layout, Trajectory


@pytest.fixture
def trajectory(tmp_path):
    """Eleven steps in blocks of three rows."""
    return recorded(tmp_path, settings(**OPTIMISERS["adamw"]))


def chunk(trajectory, name, block):
    return trajectory.folder / "states" / name / "c" / str(block) / "0"


@pytest.mark.parametrize("name", ["parameters", "second_moment"])
@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_a_damaged_step_is_named(trajectory, name, harm):
    file = chunk(trajectory, name, 2)
    raw = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(raw[: len(raw) // 2] if harm == "cut" else bytes([raw[0] ^ 1]) + raw[1:])
    again = Trajectory(trajectory.folder)
    assert again.parameters(5)
    with pytest.raises(UserError, match=r"steps 6 to 9 are damaged or truncated; delete .* and run the same"):
        again.parameters(7)
    with pytest.raises(UserError, match="steps 6 to 9") as error:
        again.verify()
    assert "\n" not in str(error.value)
    trajectory_untouched = Trajectory(trajectory.folder)
    assert trajectory_untouched.batch(1)


def test_an_unfinished_trajectory_is_named(trajectory):
    _, batches = trajectory.settings.open(trajectory.folder)
    batches.done[1] = False
    with pytest.raises(UserError, match=r"step 3 of 11 is missing"):
        Trajectory(trajectory.folder)


def test_a_folder_without_a_trajectory(trajectory, tmp_path):
    with pytest.raises(UserError, match=r"no trajectory here; train with trainer\.fit\.record=1"):
        Trajectory(tmp_path / "nothing")
    shutil.rmtree(trajectory.folder / "batches")
    with pytest.raises(UserError, match="'batches' is missing"):
        Trajectory(trajectory.folder)
    (trajectory.folder / "note.json").write_text('{"total": 3')
    with pytest.raises(UserError, match="not readable"):
        Trajectory(trajectory.folder)


def test_a_step_that_was_not_recorded(tmp_path):
    trajectory = recorded(tmp_path, settings(record=4, optimizer="sgd"))
    with pytest.raises(UserError, match="step 5 was not recorded; the nearest that was is 4"):
        trajectory.parameters(5)
    with pytest.raises(UserError, match="step 11 was not recorded; the nearest that was is 8"):
        trajectory.batch(11)
    with pytest.raises(UserError, match="sgd has no second moment"):
        trajectory.second_moment(4)
    with pytest.raises(UserError, match="every step is recorded"):
        recorded(tmp_path / "every", settings()).momentum(0)


def test_the_stated_size_is_what_the_disk_holds(trajectory):
    states = sum(f.stat().st_size for f in (trajectory.folder / "states").rglob("c/*/*") if f.is_file())
    stated = sum(shape[0] * shape[1] * 4 for shape, _ in trajectory.settings.states().values())
    padding = 0  # 12 rows are four whole blocks
    small = 3 * 4 * 1000  # done, seconds and checksum
    assert stated + padding <= states <= stated + small
    assert trajectory.settings.nbytes > stated


def test_rows_go_in_and_out(trajectory):
    layout = trajectory.settings
    assert isinstance(layout, Layout) and layout.size == 4 * 6 + 6 + 6 * 3 + 3
    named = trajectory.parameters(2)
    assert layout.named(layout.flat(named)).keys() == named.keys()
    assert all((layout.named(layout.flat(named))[name] == value).all() for name, value in named.items())
