"""Files of every kind give the same rows; what cannot be read is named, all of it, or left out and listed."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from tdaexp.data.records import Place, Skipped
from tdaexp.data.tables import read_rows
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError

pa = pytest.importorskip("pyarrow", reason="needs the extra hub")
ROWS = [
    {"id": 1, "messages": [{"role": "user", "content": "Zürich?"}, {"role": "assistant", "content": "Ja."}]},
    {"id": 2, "messages": [{"role": "user", "content": "日本?"}, {"role": "assistant", "content": "はい。"}]},
]


def written(folder: Path, kind: str) -> Path:
    import datasets
    import pyarrow.parquet as pq

    path, table = folder / f"rows.{kind}", pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "stream.arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "folder":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)
    return path


@pytest.fixture(autouse=True)
def quiet_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "arrow", "stream.arrow", "folder", "folders"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind: str) -> None:
    path = written(tmp_path, kind)
    train = Text(path=str(path), query_sets=[]).load().train
    assert [(one.id, one.prompt, one.completion) for one in train] == [
        ("1", "Zürich?", "Ja."),
        ("2", "日本?", "はい。"),
    ]
    assert [one.where for one in train] == [Place(str(path), 1), Place(str(path), 2)]


def test_a_folder_of_splits_names_them(tmp_path) -> None:
    with pytest.raises(UserError, match=r"dataset\.split of .*: unknown split 'test'; .*choices: train"):
        Text(path=str(written(tmp_path, "folders")), split="test", query_sets=[]).load()


def test_json_that_is_lines_is_read_as_lines(tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    assert [(row.values["text"], row.where.row) for row in read_rows(path)] == [("a", 1), ("b", 2)]


def test_parquet_with_nested_columns_is_one_line(tmp_path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "nested.parquet"
    pq.write_table(pa.Table.from_pylist([{"row": {"prompt": "p", "completion": "c"}, "n": 1}]), path)
    with pytest.raises(
        UserError, match=r"nested\.parquet: none of its columns \(row, n\).*row\.prompt, row\.completion"
    ):
        Text(path=str(path), query_sets=[]).load()
    pq.write_table(pa.Table.from_pylist([{"prompt": {"text": "p"}, "completion": "c"}]), path)
    with pytest.raises(UserError, match=r"nested\.parquet, row 1: column 'prompt' holds an object") as error:
        Text(path=str(path), query_sets=[]).load()
    assert "\n" not in str(error.value)
    pq.write_table(pa.Table.from_pylist([{"prompt": {"text": "p"}, "completion": "c"}] * 30), path)
    with pytest.raises(UserError, match=r"30 of 30 rows cannot be read: rows 1, 2, 3, .*, 20: column") as error:
        Text(path=str(path), query_sets=[]).load()
    assert str(error.value).count("holds an object") == 1 and "and 10 more" in str(error.value)
    assert "skip_bad" not in str(error.value) and "dataset.text_column, prompt_column" in str(error.value)


@pytest.mark.parametrize("name", ["broken.parquet", "broken.arrow"])
def test_damaged_tables_are_one_line(tmp_path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 no table at all")
    with pytest.raises(UserError, match=f"{name}: is no .* file, or damaged"):
        Text(path=str(tmp_path / name), query_sets=[]).load()


def test_a_damaged_folder_is_one_line(tmp_path) -> None:
    path = written(tmp_path, "folder")
    for file in path.glob("*.arrow"):
        file.unlink()
    with pytest.raises(UserError, match="is damaged as a folder that `datasets` saved"):
        Text(path=str(path), query_sets=[]).load()


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """10,000 rows, of which three cannot be read."""
    lines = [json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) for n in range(10_000)]
    lines[4], lines[5000] = '{"prompt": "q"', json.dumps({"prompt": "q", "completion": " "})
    path = tmp_path / "rows.jsonl"
    whole = ("\n".join(lines) + "\n").encode()
    path.write_bytes(whole.replace(b'"q9999"', b'"q\xff9"'))
    return path


WRONG = {
    5: "not valid JSON",
    5001: "column 'completion' holds no text",
    10_000: "not UTF-8 text (byte 14 of it)",
}


def test_every_row_that_cannot_be_read_is_named(spoilt) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl: 3 of 10,000 rows cannot be read") as error:
        Text(path=str(spoilt), query_sets=[]).load()
    for row, why in WRONG.items():
        assert f"row {row}: {why}" in str(error.value)
    assert "dataset.skip_bad=true" in str(error.value)


def test_rows_that_cannot_be_read_are_left_out_and_listed(spoilt, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = Text(path=str(spoilt), query_sets=[], skip_bad=True).load()
    assert len(corpus.train) == 9997
    names = [record.id for record in corpus.train]
    assert names[3:5] == ["3", "5"] and names[-1] == "9998"  # ids do not move
    assert [one.where for one in corpus.skipped] == [Place(str(spoilt), row) for row in WRONG]
    for skipped, why in zip(corpus.skipped, WRONG.values(), strict=True):
        assert isinstance(skipped, Skipped) and skipped.reason.startswith(why)
        assert f"{skipped.where}: {skipped.reason}" in caplog.text
    assert "3 of 10000 rows could not be read and were left out" in caplog.text


def test_a_limit_does_not_look_behind_itself(spoilt) -> None:
    assert len(Text(path=str(spoilt), query_sets=[], limit=4).load().train) == 4


def test_many_bad_rows_are_counted_and_a_file_without_good_ones_is_refused(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + '"a"b\n' * 30, encoding="utf-8")
    for skip_bad in (False, True):
        with pytest.raises(
            UserError, match=r"30 of 30 rows cannot be read: rows 2, 3, .*, 21: not valid CSV.*10 more; mend"
        ):
            Text(path=str(path), query_sets=[], skip_bad=skip_bad).load()


def test_bad_questions_are_left_out_too(tmp_path) -> None:
    train, asked = tmp_path / "t.jsonl", tmp_path / "q.jsonl"
    train.write_text('{"text": "a"}\n', encoding="utf-8")
    asked.write_text(
        '{"prompt": "", "completion": ""}\n{"prompt": "p", "completion": "c"}\n{"messages": []}\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"q\.jsonl: 2 of 3 rows cannot be read: row 1: column 'completion' holds no"):
        Text(path=str(train), query_path=str(asked)).load()
    corpus = Text(path=str(train), query_path=str(asked), skip_bad=True).load()
    assert [query.id for query in corpus.queries["q"]] == ["1/q"]
    assert [one.where.row for one in corpus.skipped] == [1, 3]


def test_files_of_lines_may_be_compressed(tmp_path) -> None:
    text = "".join(json.dumps({"text": f"naïve {k}"}, ensure_ascii=False) + "\n" for k in range(3)).encode("utf-8-sig")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text[:40]) + gzip.compress(text[40:]))  # as cat makes them
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in (text[:40], text[40:])]
    (tmp_path / "rows.jsonl.zst").write_bytes(b"".join(frames))
    for name in ("rows.jsonl.gz", "rows.jsonl.zst"):
        found = read_rows(tmp_path / name)
        assert [row.values["text"] for row in found] == ["naïve 0", "naïve 1", "naïve 2"]
        assert found[1].where == Place(str(tmp_path / name), 2)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_damaged_compressed_files_are_one_line(tmp_path, kind: str) -> None:
    path, text = tmp_path / f"rows.jsonl.{kind}", b'{"text": "a"}\n' * 2000
    path.write_bytes(b"no such thing")
    with pytest.raises(UserError, match=rf"rows.jsonl.{kind}: is no {kind} file, or damaged"):
        read_rows(path)
    whole = gzip.compress(text) if kind == "gz" else pa.compress(text, codec="zstd", asbytes=True)
    path.write_bytes(whole[: len(whole) - 4])
    with pytest.raises(UserError, match=rf"rows.jsonl.{kind}: is no {kind} file, or damaged"):
        read_rows(path)


def test_several_files_are_read_one_after_the_other(tmp_path, caplog) -> None:
    import pyarrow.parquet as pq

    for name, some in (("b", ROWS[1:]), ("a", ROWS[:1])):
        (tmp_path / "deep" / name).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(some), tmp_path / "deep" / name / "rows.parquet")
        pq.write_table(pa.Table.from_pylist(some), tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("of what is here", encoding="utf-8")
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "deep" / "**" / "*.parquet"):
        with caplog.at_level(logging.INFO):
            train = Text(path=str(path), query_sets=[]).load().train
        assert [one.id for one in train] == ["1", "2"] and train[1].where.row == 1
    assert f"{tmp_path}: 2 files, a.parquet to b.parquet" in caplog.messages
    with pytest.raises(UserError, match="the training id '1' stands twice"):
        Text(path=str(tmp_path / "**" / "*.parquet"), query_sets=[]).load()
    (tmp_path / "questions.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds files of several kinds \(.jsonl, .parquet\); name those of one"):
        read_rows(tmp_path)
    with pytest.raises(UserError, match="no file fits this pattern"):
        read_rows(tmp_path / "*.arrow")
    with pytest.raises(UserError, match=r"unknown kind of file '\.md'"):
        read_rows(tmp_path / "*.md")
