"""The text data set: every kind of file, errors that name file and row, and the real verses."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path

import pytest

from tdaexp.data.candidates import BM25
from tdaexp.data.columns import split_words
from tdaexp.data.records import Place
from tdaexp.data.tables import read_rows
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError

VERSES = Path(__file__).parents[2].parent / "shared" / "data" / "verses" / "verses.tsv"


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def jsonl(path: Path, rows: list[dict]) -> str:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_plain_lines_and_paragraphs(tmp_path) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\n\n  three  \nfour\n")
    lines = Text(path=path, query_sets=[]).load().train
    assert [(r.id, r.prompt, r.completion) for r in lines] == [
        ("0", "", "one"),
        ("1", "", "two"),
        ("2", "", "three"),
        ("3", "", "four"),
    ]
    paragraphs = Text(path=path, unit="paragraph", query_sets=[]).load().train
    assert [r.completion for r in paragraphs] == ["one\ntwo", "three\nfour"]
    assert [row.where for row in read_rows(Path(path), "paragraph")] == [Place(path, 1), Place(path, 5)]


def test_jsonl_with_prompts_and_paraphrases(tmp_path) -> None:
    rows = [{"n": i, "p": f"q{i}", "c": f"a{i}", "pp": f"Q{i}", "pc": f"A{i}"} for i in range(3)]
    corpus = Text(
        path=jsonl(tmp_path / "a.jsonl", rows),
        id_column="n",
        prompt_column="p",
        completion_column="c",
        paraphrase_prompt_column="pp",
        paraphrase_completion_column="pc",
        limit=2,
    ).load()
    assert [(r.id, r.prompt, r.completion) for r in corpus.train] == [("0", "q0", "a0"), ("1", "q1", "a1")]
    queries = corpus.queries["paraphrased"]
    assert [(q.id, q.prompt, q.completion, q.truth) for q in queries] == [
        ("0/paraphrased", "Q0", "A0", ("0",)),
        ("1/paraphrased", "Q1", "A1", ("1",)),
    ]


def test_tsv_takes_quotes_literally_and_csv_does_not(tmp_path) -> None:
    tsv = write(tmp_path / "a.tsv", 'id\ttext\nx\t"Oh, he said.\ny\tplain\n')
    csv = write(tmp_path / "a.csv", 'id,text\nx,"Oh, he\nsaid."\ny,plain\n')
    read = [
        [r.completion for r in Text(path=p, id_column="id", text_column="text", query_sets=[]).load().train]
        for p in (tsv, csv)
    ]
    assert read == [['"Oh, he said.', "plain"], ["Oh, he\nsaid.", "plain"]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("﻿id,text\nx,y\n".encode())
    assert read_rows(path)[0].values == {"id": "x", "text": "y"}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.0, ("", "one two  three four")),
        (0.5, ("one two", "three four")),
        (0.99, ("one two  three", "four")),
    ],
)
def test_prompt_fraction_cuts_between_words(fraction: float, expected: tuple[str, str]) -> None:
    assert split_words("one two  three four", fraction) == expected


def test_prompt_fraction_holds_for_paraphrases_too(tmp_path) -> None:
    path = write(tmp_path / "a.tsv", "a\tb\none two\tthree four\n")
    corpus = Text(path=path, text_column="a", paraphrase_column="b", prompt_fraction=0.5).load()
    (query,) = corpus.queries["paraphrased"]
    assert (query.prompt, query.completion) == ("three", "four")


def test_separate_queries_with_their_own_ids_and_truths(tmp_path, caplog) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"id": f"t{i}", "text": f"text {i}"} for i in range(4)])
    rows = [
        {"id": "a", "text": "A", "source": "t1"},
        {"id": "b", "text": "B", "source": ["t0", "t3"]},
        {"id": "c", "text": "C", "source": "t3"},
    ]
    keys = {"id_column": "id", "text_column": "text", "truth_column": "source"}
    query_path = jsonl(tmp_path / "q.jsonl", rows)
    everything = Text(path=train, query_path=query_path, **keys).load().queries["q"]
    assert [(q.id, q.truth) for q in everything] == [
        ("a/q", ("t1",)),
        ("b/q", ("t0", "t3")),
        ("c/q", ("t3",)),
    ]
    with caplog.at_level(logging.INFO):
        limited = Text(path=train, query_path=query_path, limit=2, **keys).load().queries["q"]
    assert [(q.id, q.truth) for q in limited] == [("a/q", ("t1",)), ("b/q", ("t0",))]
    assert "left out 1 queries" in caplog.text
    write(tmp_path / "q.tsv", 'id\ttext\tsource\nb\tB\t["t0", "t3"]\nd\tD\t[]\n')
    query, unknown = Text(path=train, query_path=str(tmp_path / "q.tsv"), **keys).load().queries["q"]
    assert query.truth == ("t0", "t3")
    assert unknown.truth == ()  # a query without a known source stays


def test_query_ids_that_match_nothing_are_named_with_row_and_neighbour(tmp_path) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"id": "verse-1", "text": "x"}, {"id": "verse-2", "text": "y"}])
    queries = jsonl(tmp_path / "q.jsonl", [{"id": "verse-1", "text": "x"}, {"id": "verse_2", "text": "y"}])
    with pytest.raises(UserError, match=r"q\.jsonl, row 2: unknown training id 'verse_2'; did you mean 'verse-2'"):
        Text(path=train, id_column="id", text_column="text", query_path=queries, truth_column="id").load()


BAD_FILES = {
    "missing.tsv": (None, "missing.tsv: no such file"),
    "noend": ("x", "unknown kind of file 'noend'"),
    ".": (None, "is a folder; name a file in it"),
    "empty.jsonl": ("", "empty.jsonl: the file holds no record"),
    "blank.txt": ("\n \n", "blank.txt: the file holds no record"),
    "header.tsv": ("id\ttext\n", "header.tsv: the file holds no record"),
    "text.doc": ("x", "did you mean"),
    "broken.jsonl": ('{"text": "a"}\n{"text": \n', r"broken.jsonl, row 2: not valid JSON"),
    "list.jsonl": ("[1]\n", "list.jsonl, row 1: holds list"),
    "columns.tsv": ("id\ttexts\n1\ta\n", "columns.tsv, row 2: unknown column 'text'; did you mean 'texts'"),
    "gap.tsv": ("id\ttext\n1\ta\n2\t \n", "gap.tsv, row 3: column 'text' holds no text"),
    "gap.jsonl": ('{"text": "a"}\n\n{"text": null}\n', "gap.jsonl, row 3: column 'text' holds no text"),
    "absent.jsonl": ('{"text": "a"}\n{"txt": "b"}\n', "absent.jsonl, row 2: unknown column 'text'"),
    "ragged.tsv": ("id\ttext\n1\ta\tb\n", "ragged.tsv, row 2: 3 columns where the header has 2"),
    "quote.csv": ('id,text\n1,"a"b\n', "quote.csv, row 2: not valid CSV"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_the_line(tmp_path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=message) as caught:
        Text(path=str(path), text_column="text", query_sets=[]).load()
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_an_error(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        Text(path=str(tmp_path / "a.txt"), query_sets=[]).load()


def test_repeated_ids_are_refused(tmp_path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "a"}, {"id": "x", "text": "b"}])
    with pytest.raises(UserError, match=r"training id 'x' stands twice, in .*a\.jsonl, row 1 and .*a\.jsonl, row 2"):
        Text(path=path, id_column="id", text_column="text", query_sets=[]).load()


def test_missing_paraphrases_matter_only_when_asked_for(tmp_path) -> None:
    path = write(tmp_path / "a.txt", "one\n")
    assert Text(path=path, query_sets=[]).load().queries == {}
    for asked in ("paraphrased", "generated"):
        with pytest.raises(UserError, match=r"no paraphrases .* dataset\.paraphrase_column=NAME or") as error:
            Text(path=path, query_sets=[asked]).load()
        assert "query_sets=[]" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either dataset.path=FILE or dataset.hub=NAME"),
        ({"path": "a.tsv", "hub": "b", "text_column": "t"}, "give either"),
        ({"path": "a.tsv", "text_column": "t", "completion_column": "c"}, "name either"),
        ({"path": "a.tsv", "text_column": "t", "prompt_column": "p"}, "goes with dataset.completion_column"),
        ({"path": "a.tsv", "messages_column": "m", "text_column": "t"}, "name either dataset.messages_column or"),
        (
            {"path": "a.tsv", "text_column": "t", "paraphrase_prompt_column": "p"},
            "needs dataset.paraphrase_comp",
        ),
        ({"path": "a.tsv", "text_column": "t", "paraphrase_column": "p", "query_path": "q"}, "give only one"),
        ({"path": "a.txt", "unit": "lines"}, "did you mean 'line'"),
        ({"path": "a.txt", "prompt_fraction": 1.0}, "dataset.prompt_fraction=1.0"),
        ({"path": "a.txt", "limit": 0}, "dataset.limit=0"),
    ],
)
def test_keys_that_do_not_fit_together(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Text(**keys)


class Unreachable(Exception):
    """Stands for the hub library's own errors."""


def fake_hub(monkeypatch, load) -> None:
    module = types.ModuleType("datasets")
    module.exceptions = types.SimpleNamespace(DatasetsError=Unreachable)
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_rows_become_records(monkeypatch) -> None:
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return [{"q": "Where?", "a": "Riga."}, {"q": "Who?", "a": "Anna."}]

    fake_hub(monkeypatch, load)
    data = Text(
        hub="some/data",
        hub_config="en",
        split="test",
        prompt_column="q",
        completion_column="a",
        query_sets=[],
    )
    assert [(r.id, r.text) for r in data.load().train] == [("0", "Where?\nRiga."), ("1", "Who?\nAnna.")]
    assert asked == [("some/data", "en", "test")]


@pytest.mark.parametrize("error", [ConnectionError("offline\nlong story"), Unreachable("gone"), ValueError("split")])
def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, error: Exception) -> None:
    def load(name, config, split):
        raise error

    fake_hub(monkeypatch, load)
    with pytest.raises(UserError, match=r"dataset.hub=some/data: cannot load split 'train'") as caught:
        Text(hub="some/data", text_column="t", query_sets=[]).load()
    assert "\n" not in str(caught.value)


def test_without_the_hub_package_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tdaexp\[hub\]'"):
        Text(hub="some/data", text_column="t", query_sets=[]).load()


@pytest.mark.skipif(not VERSES.is_file(), reason="needs ../shared/data/verses/verses.tsv")
def test_the_verses_load_with_their_human_paraphrases() -> None:
    data = Text(path=str(VERSES), id_column="id", text_column="twenty", paraphrase_column="anderson", limit=988).load()
    queries = data.queries["paraphrased"]
    assert len(data.train) == len(queries) == 988
    assert data.train[0].id == "Matthew 1:1"
    assert data.train[0].completion == "A genealogy of Jesus Christ, a descendant of David and Abraham."
    assert queries[0].completion.startswith("The book of the genealogy") and queries[0].truth == ("Matthew 1:1",)
    chosen = BM25().select(queries[:50], data.train)
    hits = [data.train[row[0]].id in query.truth for query, row in zip(queries, chosen.indices, strict=False)]
    assert sum(hits) > 30


def test_a_second_stage_comes_from_a_file(tmp_path) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"text": "one"}, {"text": "two"}])
    rows = [{"prompt": "Two and two?", "completion": " four"}, {"prompt": "Sky?", "completion": "blue"}]
    keys = {"path": train, "text_column": "text", "query_sets": []}
    data = Text(**keys, finetune_path=jsonl(tmp_path / "f.jsonl", rows))
    found = data.load().finetune
    assert [(r.id, r.prompt, r.completion) for r in found] == [
        ("ft-0", "Two and two?", "four"),
        ("ft-1", "Sky?", "blue"),
    ]
    assert not Text(**keys).load().finetune
    with pytest.raises(UserError, match=r"dataset\.finetune_limit=0: must be at least 1"):
        Text(**keys, finetune_limit=0)
