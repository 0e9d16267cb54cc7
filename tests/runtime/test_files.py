import errno
import json

import pytest
import torch

from tdaexp.runtime.files import atomic_path, cached_folder, disk_full, full_place, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "metrics.json"
    write_json(target, {"accuracy": 1.0})
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
        temporary.write_text("{half")
        raise OSError(28, "No space left on device")
    assert json.loads(target.read_text()) == {"accuracy": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_path(tmp_path / "store") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["new"]


def test_a_cached_folder_is_built_once_and_only_when_the_build_succeeds(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "file").write_text("x")
        if len(calls) == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder(tmp_path / "key", build)
    assert not (tmp_path / "key").exists()
    for _ in range(2):
        assert (cached_folder(tmp_path / "key", build) / "file").read_text() == "x"
    assert len(calls) == 2


def test_a_really_full_device_is_recognised():
    """torch hides the reason behind errors of its own: /dev/full is the oracle."""
    with pytest.raises(Exception) as caught, open("/dev/full", "wb") as stream:
        torch.save({"w": torch.zeros(100_000)}, stream)
    assert disk_full(caught.value)


def test_safetensors_message_of_a_full_device_is_recognised():
    """It has no errno, a message only."""
    assert disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))


def test_other_errors_are_no_full_device():
    assert not disk_full(ZeroDivisionError()) and not disk_full(OSError(errno.EACCES, "Permission denied"))


def test_a_full_disk_names_what_could_not_be_written(tmp_path):
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / "kept") as temporary:
        temporary.mkdir()
        with atomic_path(temporary / "x.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert disk_full(caught.value) and full_place(caught.value) == tmp_path / "kept" / "x.json"
    assert not list(tmp_path.iterdir())
    assert full_place(OSError(errno.ENOSPC, "No space left on device")) is None
