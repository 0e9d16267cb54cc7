"""Records of large files in a store: as those in memory, whatever the file; bad rows and repeated ids; damage."""

from __future__ import annotations

import copy
import gc
import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tdaexp.data import files, record_store
from tdaexp.data.flat import FlatTexts, Writer
from tdaexp.data.record_store import RecordStore
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError

ROWS = [
    {"id": f"r{k}", "prompt": f"Frage {k}? " * (k % 3), "completion": f"línea {k}\n日本 {k}", "source": f"s{k % 2}"}
    for k in range(23)
]
ROWS[4].pop("source")
DIALOGUES = [
    {
        "id": k,
        "messages": [{"role": "user", "content": f"a {k}"}, {"role": "assistant", "content": f"b {k}"}] * (1 + k % 3),
    }
    for k in range(9)
]


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    monkeypatch.setattr(record_store, "AT_ONCE", 5)  # several pieces of a few


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def several(folder: Path) -> Path:
    """A folder of two files."""
    (folder / "parts").mkdir()
    lines(folder / "parts" / "b.jsonl", ROWS[15:])
    lines(folder / "parts" / "a.jsonl", ROWS[:15])
    return folder / "parts"


def packed(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(folder / "rows.jsonl", ROWS).read_bytes()))
    return path


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=4)
    return folder / "rows.parquet"


def arrow(folder: Path) -> Path:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=4)
    return folder / "rows.arrow"


def saved(folder: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def paragraphs(folder: Path) -> Path:
    (folder / "rows.txt").write_text("\n\n".join(f"one {k}\ntwo" for k in range(12)), encoding="utf-8")
    return folder / "rows.txt"


@pytest.mark.parametrize(
    ("made", "keys"),
    [
        (lambda folder: lines(folder / "rows.jsonl", ROWS), {}),
        (lambda folder: lines(folder / "rows.jsonl", ROWS), {"limit": 7, "id_column": "row"}),
        (lambda folder: lines(folder / "rows.jsonl", ROWS), {"text_column": "completion", "prompt_fraction": 0.5}),
        (lambda folder: lines(folder / "chat.jsonl", DIALOGUES), {}),
        (several, {}),
        (packed, {}),
        (parquet, {"group_column": "id"}),
        (arrow, {}),
        (saved, {}),
        (paragraphs, {"unit": "paragraph"}),
    ],
    ids=["lines", "limit", "fraction", "dialogues", "folder", "gz", "parquet", "arrow", "saved", "paragraphs"],
)
def test_stored_records_are_those_in_memory(tmp_path, made, keys) -> None:
    path = str(made(tmp_path))
    known = Text(path=path, query_sets=[], **keys).load()
    for _ in range(2):  # written, and read again
        found = Text(path=path, query_sets=[], **keys).load_kept(tmp_path / "cache")
        assert isinstance(found.train, RecordStore) and len(found.train) == len(known.train)
        assert list(found.train) == known.train
        assert [one.where for one in found.train] == [one.where for one in known.train]
        assert found.train[3:6] == known.train[3:6] and found.train[-1] == known.train[-1]
        assert found.train[::2] == known.train[::2] and found.train[6:2] == []
        assert [found.train.names.place(one.id) for one in known.train] == list(range(len(known.train)))
        assert found.train.characters.tolist() == [len(one.text) for one in known.train]
    assert "another" not in found.train.names and found.train.names.place("another") is None


def test_small_files_and_what_is_asked_of_all_records_stay_in_memory(tmp_path, monkeypatch) -> None:
    path = str(lines(tmp_path / "rows.jsonl", ROWS))
    assert isinstance(Text(path=path, query_sets=[], held_out=2).load_kept(tmp_path / "cache").train, list)
    keys = {"paraphrase_completion_column": "completion", "query_sets": ["paraphrased"]}
    assert isinstance(Text(path=path, **keys).load_kept(tmp_path / "cache").train, list)
    monkeypatch.setattr(files, "LARGE_BYTES", 1 << 20)
    assert isinstance(Text(path=path, query_sets=[]).load_kept(tmp_path / "cache").train, list)
    assert not (tmp_path / "cache").exists()


def test_questions_name_stored_records_and_unknown_ones_are_refused(tmp_path) -> None:
    path = str(lines(tmp_path / "rows.jsonl", ROWS))
    asked = lines(tmp_path / "ask.jsonl", [{"id": 0, "prompt": "a", "completion": "b", "of": ["r7", "r21"]}])
    keys = {"path": path, "query_path": str(asked), "truth_column": "of"}
    found, known = Text(**keys).load_kept(tmp_path / "cache"), Text(**keys).load()
    assert found.queries == known.queries and found.queries["ask"][0].truth == ("r7", "r21")
    lines(asked, [{"id": 0, "prompt": "a", "completion": "b", "of": "r70"}])
    with pytest.raises(UserError, match="unknown training id 'r70'; did you mean 'r7'"):
        Text(**keys).load_kept(tmp_path / "cache")
    lines(asked, [{"id": 0, "prompt": "a", "completion": "b", "of": "r7"}] * 2)
    with pytest.raises(UserError, match="query id '0/ask' stands twice"):
        Text(**keys).load_kept(tmp_path / "cache")


def test_an_id_that_stands_twice_far_apart_is_refused_with_both_places(tmp_path) -> None:
    path = lines(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[9], "id": "late"}, ROWS[2], ROWS[2], ROWS[1]])
    with pytest.raises(UserError) as known:
        Text(path=str(path), query_sets=[]).load()
    with pytest.raises(UserError, match=r"'r2' stands twice, in .*row 3 and .*row 25; make the ids unique") as told:
        Text(path=str(path), query_sets=[]).load_kept(tmp_path / "cache")
    assert str(told.value) == str(known.value)
    assert not list((tmp_path / "cache").glob("records/[!.]*"))  # nothing is left


def test_ids_whose_hashes_are_equal_are_told_apart(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(record_store, "_hash", lambda name: 5)
    path = str(lines(tmp_path / "rows.jsonl", ROWS))
    found = Text(path=path, query_sets=[]).load_kept(tmp_path / "cache").train
    assert [found.names.place(f"r{k}") for k in (0, 22, 11)] == [0, 22, 11] and found.names.place("r23") is None


def test_rows_that_cannot_be_read_are_refused_or_left_out_each_time(tmp_path, caplog) -> None:
    rows = [*ROWS[:8], {**ROWS[8], "completion": " "}, *ROWS[9:]]
    path = str(lines(tmp_path / "rows.jsonl", rows))
    with pytest.raises(UserError, match="row 9: column 'completion' holds no text; fill it in or remove the row"):
        Text(path=path, query_sets=[]).load_kept(tmp_path / "cache")
    known = Text(path=path, query_sets=[], skip_bad=True).load()
    for _ in range(2):
        caplog.clear()
        found = Text(path=path, query_sets=[], skip_bad=True).load_kept(tmp_path / "cache")
        assert list(found.train) == known.train and found.skipped == known.skipped
        assert "1 of 23 rows could not be read and were left out" in caplog.text


def test_other_bytes_are_another_store_and_another_name_of_the_file_is_not(tmp_path) -> None:
    path, cache = lines(tmp_path / "rows.jsonl", ROWS), tmp_path / "cache"
    first = Text(path=str(path), query_sets=[]).load_kept(cache).train
    shutil.move(path, tmp_path / "moved.jsonl")
    second = Text(path=str(tmp_path / "moved.jsonl"), query_sets=[]).load_kept(cache).train
    assert second.path == first.path and "moved.jsonl, row 2" in second[1].place
    lines(tmp_path / "moved.jsonl", [*ROWS, {"id": "new", "prompt": "", "completion": "new"}])
    third = Text(path=str(tmp_path / "moved.jsonl"), query_sets=[]).load_kept(cache).train
    assert third.path != first.path and len(third) == 24


def test_a_damaged_store_is_named_and_made_again(tmp_path, caplog) -> None:
    path = str(lines(tmp_path / "rows.jsonl", ROWS))
    store = Text(path=path, query_sets=[]).load_kept(tmp_path / "cache").train.path
    whole = (store / "records.bin").read_bytes()
    (store / "records.bin").write_bytes(whole.replace(b"Frage", b"Fragx"))
    found = Text(path=path, query_sets=[]).load_kept(tmp_path / "cache").train
    assert f"{store}: damaged (records.bin: its checksum is wrong), and is made again" in caplog.text
    assert "as they were read before" not in caplog.text
    assert list(found) == Text(path=path, query_sets=[]).load().train
    assert (store / "records.bin").read_bytes() == whole


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch) -> None:
    path = lines(tmp_path / "rows.jsonl", ROWS)
    plain = record_store._plain

    def meanwhile(record, numbers):
        if record.id == "r20":
            lines(path, ROWS[::-1])
        return plain(record, numbers)

    monkeypatch.setattr(record_store, "_plain", meanwhile)
    with pytest.raises(UserError, match=r"rows\.jsonl: changed while it was read; run again when it is at rest"):
        Text(path=str(path), query_sets=[]).load_kept(tmp_path / "cache")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_build_that_ends_early_leaves_nothing_and_starts_again(tmp_path, monkeypatch, error) -> None:
    path, plain = str(lines(tmp_path / "rows.jsonl", ROWS)), record_store._plain

    def ending(record, numbers):
        if record.id == "r20":
            raise error
        return plain(record, numbers)

    monkeypatch.setattr(record_store, "_plain", ending)
    with pytest.raises((KeyboardInterrupt, OSError)):
        Text(path=path, query_sets=[]).load_kept(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("records/[!.]*"))
    monkeypatch.setattr(record_store, "_plain", plain)
    found = Text(path=path, query_sets=[]).load_kept(tmp_path / "cache").train
    assert list(found) == Text(path=path, query_sets=[]).load().train


def test_a_copy_opens_its_file_anew(tmp_path) -> None:
    with Writer(tmp_path / "texts") as written:
        written.texts(["one", "two"])
    texts = FlatTexts(tmp_path / "texts")
    other = copy.deepcopy(texts)
    del texts
    gc.collect()
    assert list(other) == ["one", "two"]
