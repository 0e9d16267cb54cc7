"""A training file without some rows is what reads as the others, in the file's own kind."""

import json

import pytest

from tdaexp.data.records import Record
from tdaexp.data.rewriting import rewritten, written
from tdaexp.data.text import Text

ROWS = [(f"i{k}", f'Say {k}, "and"', f"one\n{'two' * k}") for k in range(6)]


def as_csv(rows):
    quoted = [[cell.replace('"', '""') for cell in row] for row in rows]
    return "id,prompt,completion\n" + "".join('"' + '","'.join(row) + '"\n\n' for row in quoted)


def as_objects(rows):
    return [dict(zip(("id", "prompt", "completion"), row, strict=True)) for row in rows]


FILES = {
    "a.jsonl": "\ufeff" + "\n\n".join(json.dumps(one) for one in as_objects(ROWS)) + "\n",
    "a.json": json.dumps(as_objects(ROWS)),
    "lines.json": "\n".join(json.dumps(one) for one in as_objects(ROWS)),
    "separated.json": "\r\n".join(
        json.dumps({**one, "prompt": "a\u2028b\x85c"}, ensure_ascii=False) for one in as_objects(ROWS)
    ),
    "a.csv": as_csv(ROWS),
    "a.tsv": "id\tprompt\tcompletion\r\n" + "".join(f"{a}\t{b}\t{c.split()[0]} {a}\r\n" for a, b, c in ROWS),
}


def records(path, **keys):
    return Text(path=str(path), query_sets=[], **keys).load().train


@pytest.mark.parametrize("name", FILES)
def test_what_is_left_reads_as_before(tmp_path, name):
    path, target = tmp_path / name, tmp_path / f"kept-{name}"
    path.write_text(FILES[name], encoding="utf-8", newline="")
    before = records(path, id_column="id")
    gone = [before[0], before[3], before[5]]
    assert rewritten(path, "line", {one.where.row for one in gone}, target)
    left = [one for one in before if one not in gone]
    assert records(target, id_column="id") == left and len(left) == 3
    assert rewritten(path, "line", set(), tmp_path / f"all-{name}")
    if path.suffix != ".json":
        assert (tmp_path / f"all-{name}").read_bytes().decode() == FILES[name].removeprefix("\ufeff")


@pytest.mark.parametrize(("unit", "gone", "kept"), [("line", {1, 5}, "two\n\nthree\n\n\nfive\nsix"),
                                                   ("paragraph", {4}, "one\ntwo\n\nfive\nsix")])  # fmt: skip
def test_plain_text(tmp_path, unit, gone, kept):
    path, target = tmp_path / "a.txt", tmp_path / "kept.txt"
    path.write_text("one\ntwo\n\nthree\nfour\n\n\nfive\nsix", encoding="utf-8")
    before = records(path, unit=unit)
    assert rewritten(path, unit, gone, target)
    assert target.read_text(encoding="utf-8") == kept
    left = [one.completion for one in before if one.where.row not in gone]
    assert [one.completion for one in records(target, unit=unit)] == left


def test_parquet_keeps_its_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path, target = tmp_path / "a.parquet", tmp_path / "kept.parquet"
    pq.write_table(pa.table({"prompt": list("abc"), "completion": list("xyz"), "n": [1, 2, 3]}), path)
    assert rewritten(path, "line", {2}, target)
    assert pq.read_table(target).to_pydict() == {"prompt": ["a", "c"], "completion": ["x", "z"], "n": [1, 3]}


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_keeps_its_columns(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    path, target = tmp_path / "a.arrow", tmp_path / "kept.arrow"
    table = pa.table({"prompt": list("abc"), "completion": list("xyz"), "n": [1, 2, 3]})
    with pa.OSFile(str(path), "wb") as sink, getattr(pa.ipc, f"new_{kind}")(sink, table.schema) as out:
        out.write_table(table)
    assert rewritten(path, "line", {2}, target)
    assert [(one.prompt, one.completion) for one in records(target)] == [("a", "x"), ("c", "z")]
    with pa.memory_map(str(target)) as source:
        assert pa.ipc.open_stream(source).read_all().to_pydict()["n"] == [1, 3]


def test_a_saved_folder_keeps_its_columns_and_its_other_parts(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": list("abc"), "completion": list("xyz"), "n": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": rows, "mine": rows}).save_to_disk(str(tmp_path / "several"))
    assert rewritten(tmp_path / "one", "line", {2}, tmp_path / "one-kept")
    assert rewritten(tmp_path / "several", "line", {1, 3}, tmp_path / "several-kept", "mine")
    assert datasets.load_from_disk(str(tmp_path / "one-kept"))[:] == {
        "prompt": ["a", "c"], "completion": ["x", "z"], "n": [1, 3]
    }  # fmt: skip
    kept = datasets.load_from_disk(str(tmp_path / "several-kept"))
    assert kept["mine"]["n"][:] == [2] and kept["test"]["n"][:] == [1, 2, 3]
    assert [one.prompt for one in records(tmp_path / "several-kept", split="mine")] == ["b"]


def test_other_data_become_json_lines(tmp_path):
    assert not rewritten(tmp_path, "line", set(), tmp_path / "kept")
    said = (("user", "hi"), ("assistant", "yes?"), ("user", "why"))
    mine = [
        Record("a", "ask", "answer"),
        Record("b", "", "a text alone"),
        Record("c", "hi\nyes?\nwhy", "so", said=said),
        Record("d", "be brief", "so", said=(("system", "be brief"),)),
    ]
    for part in (mine[:1], mine[:2], mine[2:], mine):
        written(part, tmp_path / "kept.jsonl")
        assert records(tmp_path / "kept.jsonl") == part
