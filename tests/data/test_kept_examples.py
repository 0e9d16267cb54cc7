"""Stored examples are those in memory, bit for bit, and read a few at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tdaexp.data import example_store, files, kept_examples
from tdaexp.data.example_store import StoredExamples
from tdaexp.data.examples import Example, Examples
from tdaexp.data.record_store import RecordStore
from tdaexp.data.text import Text
from tdaexp.data.tokenise import tokenise
from tdaexp.runtime.errors import UserError

ROWS = [
    {"id": f"r{k}", "prompt": "línea " * (k % 5), "completion": f" {k} of the text" * (1 + k % 7)} for k in range(41)
]
TURNS = [{"role": "user", "content": "Where does Anna live?"}, {"role": "assistant", "content": "In Riga."}]
DIALOGUES = [{"id": f"c{k}", "messages": TURNS * (1 + k % 3)} for k in range(7)]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    monkeypatch.setattr(kept_examples, "AT_ONCE", 6)
    monkeypatch.setattr(example_store, "BLOCK", 8)


@pytest.fixture
def both(tmp_path, request):
    """The records of some rows, in memory and stored."""
    rows = getattr(request, "param", ROWS)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = Text(path=str(path), query_sets=[])
    return data.load().train, data.load_kept(tmp_path / "cache").train


def kept(records: RecordStore, tokenizer, vocabulary: int = 400, **how) -> StoredExamples:
    how = {"max_length": 512, "chunk": None, **how}
    name = "-".join(map(str, [*how.values(), vocabulary]))
    return kept_examples.kept_examples(
        records.path.parent / name, records, tokenizer, vocabulary, lambda _: None, **how
    )


def assert_same(found: Example, known: Example) -> None:
    assert (found.id, found.text, found.prompt, found.document) == (known.id, known.text, known.prompt, known.document)
    for name in ("tokens", "loss_mask"):
        ours, theirs = getattr(found, name), getattr(known, name)
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("both", "how", "dtype"),
    [
        (ROWS, {}, "uint16"),
        (ROWS, {"vocabulary": 1 << 17}, "uint32"),
        (ROWS, {"max_length": 20, "loss_on": "all", "append_eos": False}, "uint16"),
        (ROWS, {"chunk": 9}, "uint16"),
        (DIALOGUES, {"turns": "all"}, "uint16"),
        (DIALOGUES, {"template": "plain", "turns": "last"}, "uint16"),
    ],
    indirect=["both"],
    ids=["plain", "uint32", "cut", "chunks", "turns", "last"],
)
def test_stored_examples_are_those_in_memory(both, bos_tokenizer, how, dtype) -> None:
    plain = {name: value for name, value in how.items() if name != "vocabulary"}
    known = tokenise(both[0], bos_tokenizer, **{"max_length": 512, "chunk": None, **plain})
    for found in (kept(both[1], bos_tokenizer, **how), kept(both[1], bos_tokenizer, **how)):
        assert found.store.note["dtype"] == dtype and len(found) == len(known)
        for ours, theirs in zip(found, known, strict=True):
            assert_same(ours, theirs)
        assert found.fingerprint() == known.fingerprint() and found.contrastive == known.contrastive
        assert found.ids == known.ids and found.texts == known.texts and found.prompts == known.prompts
        assert found.lengths.tolist() == known.lengths.tolist()
        for some in (slice(0, 8), slice(8, 16), slice(len(known) // 8 * 8, None), slice(3, 9), slice(None, None, 3)):
            rows = np.arange(len(known))[some]
            assert found[some].fingerprint() == found.select(rows).fingerprint() == known[some].fingerprint()
            assert found[some].ids == known[some].ids and found[some].lengths.tolist() == known[some].lengths.tolist()
        mixed = [4, 1, 1, -1]
        assert found.select(mixed).fingerprint() == known.select(mixed).fingerprint()
        assert found[2:9].select([1, 2])[1].id == known[4].id
    if "chunk" in how:
        where = {one.id: row for row, one in enumerate(both[0])}
        assert found.store.documents.tolist() == [where[str(one.document)] for one in known]


def test_blocks_are_fingerprinted_without_a_look_at_them(both, plain_tokenizer, monkeypatch) -> None:
    found = kept(both[1], plain_tokenizer)
    known = tokenise(both[0], plain_tokenizer)
    monkeypatch.setattr(example_store.ExampleStore, "example", None)
    assert found.fingerprint() == known.fingerprint()
    for start in range(0, len(known), 8):
        rows = np.arange(start, min(start + 8, len(known)))
        assert found.select(rows).fingerprint() == known.select(rows).fingerprint()


def test_texts_that_fill_the_context_are_counted_whenever_they_are_read(both, plain_tokenizer, caplog) -> None:
    full = sum(len(one.tokens) == 20 for one in tokenise(both[0], plain_tokenizer, max_length=20))
    for _ in range(2):
        caplog.clear()
        kept(both[1], plain_tokenizer, max_length=20)
        assert f"{full} of 41 examples have the 20 tokens that the model reads at most" in caplog.text and full


@pytest.mark.parametrize("both", [[*ROWS, {**ROWS[0], "id": "r40#2"}]], indirect=True)
def test_a_piece_that_would_be_called_as_another_record_is_refused(both, plain_tokenizer) -> None:
    message = "a piece of 'r40' would be called 'r40#2', which is another record's id; rename that one"
    with pytest.raises(UserError, match=message):
        tokenise(both[0], plain_tokenizer, chunk=9)
    with pytest.raises(UserError, match=message):
        kept(both[1], plain_tokenizer, chunk=9)


def test_what_is_refused_is_refused_before_anything_is_kept(both, plain_tokenizer, tmp_path) -> None:
    def check(examples: Examples) -> None:
        if "r30" in examples.ids:
            raise UserError("example 'r30': refused")

    with pytest.raises(UserError, match="'r30': refused"):
        kept_examples.kept_examples(
            tmp_path / "tokens", both[1], plain_tokenizer, 400, check, max_length=512, chunk=None
        )
    assert not list(tmp_path.glob("tokens*"))


def test_damage_is_named_and_mended(both, plain_tokenizer, caplog) -> None:
    store = kept(both[1], plain_tokenizer).store.path
    whole = (store / "tokens.bin").read_bytes()
    (store / "tokens.bin").write_bytes(whole[:-3])
    again = kept(both[1], plain_tokenizer)
    assert f"{store}: damaged (tokens.bin: its checksum is wrong), and is made again" in caplog.text
    assert (store / "tokens.bin").read_bytes() == whole
    assert again.fingerprint() == tokenise(both[0], plain_tokenizer).fingerprint()


def test_a_file_that_ends_early_is_told_where_it_is_read(both, plain_tokenizer) -> None:
    found = kept(both[1], plain_tokenizer)
    (found.store.path / "tokens.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"tokens\.bin: ends before its number .*; it was changed after it was written"):
        found[3]
