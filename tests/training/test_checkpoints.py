import errno

import pytest
import torch

from tdaexp.runtime.errors import UserError
from tdaexp.training.checkpoints import (
    AtomicCheckpointIO,
    disk_may_be_full,
    newest_readable,
    prune,
    resume_path,
)


@pytest.fixture
def saved(tmp_path):
    for step in (2, 10, 9):
        AtomicCheckpointIO().save_checkpoint({"step": step, "w": torch.ones(1000)}, resume_path(tmp_path, step))
    return tmp_path


def test_the_newest_is_the_highest_step(saved):
    assert newest_readable(saved) == resume_path(saved, 10)
    assert newest_readable(saved / "none") is None


@pytest.mark.parametrize("left", [0, 10, 3000])
def test_a_truncated_checkpoint_falls_back_to_the_one_before_with_a_line(saved, left, caplog):
    newest = resume_path(saved, 10)
    newest.write_bytes(newest.read_bytes()[:left])
    assert newest_readable(saved) == resume_path(saved, 9)
    assert not newest.exists() and "step-00000010.ckpt is damaged" in caplog.text


def test_two_are_kept(saved):
    prune(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000009.ckpt", "step-00000010.ckpt"]


def test_saving_over_a_checkpoint_leaves_the_old_one_when_it_fails(saved, monkeypatch):
    def half(value, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"step-00000010\.ckpt: no space left .* free some and run again"):
        AtomicCheckpointIO().save_checkpoint({}, resume_path(saved, 10))
    assert torch.load(resume_path(saved, 10), weights_only=True)["step"] == 10
    assert len(list(saved.iterdir())) == 3


def test_a_really_full_device_is_recognised(tmp_path):
    # torch hides the reason behind errors of its own: /dev/full is the oracle.
    with (
        pytest.raises(UserError, match="no space left on the device"),
        disk_may_be_full(tmp_path),
        open("/dev/full", "wb") as stream,
    ):
        torch.save({"w": torch.zeros(100_000)}, stream)


def test_safetensors_message_of_a_full_device_is_recognised(tmp_path):
    # How safetensors words it: no errno, a message only.
    with pytest.raises(UserError, match="no space left"), disk_may_be_full(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_other_errors_pass_through(tmp_path):
    with pytest.raises(ZeroDivisionError), disk_may_be_full(tmp_path):
        raise ZeroDivisionError
