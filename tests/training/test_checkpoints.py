import errno

import pytest
import torch

from tdaexp.training.checkpoints import (
    AtomicCheckpointIO,
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
    assert sorted(path.name for path in saved.glob("*.ckpt")) == ["step-00000009.ckpt", "step-00000010.ckpt"]
    assert len(list(saved.iterdir())) == 4  # each with its digest


def test_saving_over_a_checkpoint_leaves_the_old_one_when_it_fails(saved, monkeypatch):
    def half(value, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({}, resume_path(saved, 10))
    assert torch.load(resume_path(saved, 10), weights_only=True)["step"] == 10
    assert sorted(path.suffix for path in saved.iterdir()) == [*[".ckpt"] * 3, *[".digest"] * 3]
