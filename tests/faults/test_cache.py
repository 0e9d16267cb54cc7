"""Kind 2: a cache that cannot be written serves what it holds; what it holds can be listed and pruned."""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import TINY

from tdaexp import influence
from tdaexp.runtime import cache
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.files import cached_folder

OWN = [*TINY, "cache_dir=own"]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextmanager
def read_only(folder: Path):
    """Inside the block no file can be made, changed or removed in the folder, as on a read-only mount."""
    folder = folder.absolute()

    def refused(path) -> bool:
        try:
            return not isinstance(path, int) and Path(os.fsdecode(path)).absolute().is_relative_to(folder)
        except TypeError:
            return False

    def guard(plain, writes=lambda *_, **__: True):
        def call(path, *arguments, **keywords):
            targets = [path, *(one for one in arguments if isinstance(one, str | os.PathLike))]
            if writes(path, *arguments, **keywords) and any(refused(one) for one in targets):
                raise OSError(errno.EROFS, "Read-only file system", os.fsdecode(path))
            return plain(path, *arguments, **keywords)

        return call

    def made(path, *_, **__) -> bool:
        return not os.path.isdir(path)

    import builtins
    import io

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", guard(os.open, lambda _, flags, *__, **___: bool(flags & WRITING)))
        opened = guard(builtins.open, lambda _, mode="r", *__, **___: bool(set(mode) & set("wax+")))
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "mkdir", guard(os.mkdir, made))
        for name in ("replace", "rename", "unlink", "rmdir", "remove"):
            patch.setattr(os, name, guard(getattr(os, name)))
        yield


@pytest.mark.long
def test_a_complete_cache_that_cannot_be_written_serves(commands):
    commands.done("attribute", *OWN, "method=ekfac", "hydra.run.dir=first")
    with read_only(Path("own")):
        commands.done("attribute", *OWN, "method=ekfac", "hydra.run.dir=second")
    first, second = (influence.load(Path(name) / "influence.zarr") for name in ("first", "second"))
    np.testing.assert_array_equal(influence.scores(first).values, influence.scores(second).values)


def test_what_must_be_written_into_it_is_refused_in_one_line(commands):
    Path("own").mkdir()
    with read_only(Path("own")):
        line = commands.refused("attribute", *OWN, "method=dot")
    assert "cannot be written (Read-only file system)" in line and "cache_dir=FOLDER" in line


@pytest.mark.parametrize("below", ["", "/models"])
def test_a_cache_that_is_a_file_is_refused(commands, below):
    Path("file").write_text("x")
    line = commands.refused("attribute", *TINY, f"cache_dir=file{below}", "method=random")
    assert "file is a file; name a folder" in line


def test_a_block_store_that_is_whole_needs_no_lock(tmp_path):
    values = np.arange(4.0)
    arrays = {"a": ((4,), "float64")}
    store = BlockStore(tmp_path / "store", arrays, [slice(0, 4)])
    with store.pending() as missing:
        store.write(missing[0], {"a": values})
    with read_only(tmp_path):
        again = BlockStore(tmp_path / "store", arrays, [slice(0, 4)])
        with again.pending() as missing:
            assert not missing
        np.testing.assert_array_equal(again.read()["a"], values)


def made(folder: Path, key: str = "one") -> Path:
    """An entry of a cache."""
    path = cache.entry(folder, "kind", key, by=[BlockStore])
    return cached_folder(path, lambda inside: (inside / "file").write_bytes(b"x" * 1000))


def test_only_what_no_current_code_reaches_is_pruned(commands):
    folder = Path("own")
    current, edited, older = made(folder), made(folder, "two"), made(folder, "three")
    note = cache.note_of(edited)
    note.write_text(json.dumps({**json.loads(note.read_text()), "code": "0" * 16}))
    cache.note_of(older).unlink()
    (folder / "kind" / "mine").mkdir()
    (folder / "notes.txt").write_text("mine")
    left = folder / "kind" / f".{current.name}.12ab34cd.part"
    left.write_text("half")
    assert {one.path: one.state for one in cache.listed(folder)} == {
        current: "current", edited: "orphaned", older: "orphaned"
    }  # fmt: skip
    said = commands.done("evaluate", "cache_dir=own", "cache=list")
    assert f"kind/{current.name}" in said and "3 entries" in said and "2 of them orphaned" in said
    said = commands.done("evaluate", "cache_dir=own", "cache=prune")
    assert "3 entries deleted" in said
    assert current.exists() and (folder / "kind" / "mine").exists() and (folder / "notes.txt").exists()
    assert not edited.exists() and not older.exists() and not left.exists()
    assert json.loads(cache.note_of(current).read_text())["code"]


def test_a_cache_that_a_run_uses_is_not_pruned(commands):
    gone = made(Path("own"))
    cache.note_of(gone).unlink()
    with cache.at_work(Path("own")):
        line = commands.refused("evaluate", "cache_dir=own", "cache=prune")
    assert "cache_dir=own: a run is at work with it" in line and gone.exists()
    being = pytest.raises(UserError, match="is being pruned")
    with cache.at_work(Path("own"), alone=True), being, cache.at_work(Path("own")):
        pass


def test_a_word_that_is_none_and_a_folder_that_is_not_there_are_refused(commands):
    assert "choices: list, prune" in commands.refused("evaluate", "cache=prun")
    line = commands.refused("evaluate", "cache_dir=nowhere", "cache=list")
    assert "cache_dir=nowhere: there is no such folder" in line and not Path("nowhere").exists()


def test_every_entry_that_a_run_leaves_is_current(commands):
    commands.done("attribute", *OWN, "method=ekfac")
    found = cache.listed(Path("own"))
    assert {one.path.parent.name for one in found} == {"models", "generated", "candidates", "factors", "influence"}
    assert {one.state for one in found} == {"current"}
