"""Files of tokens: where their documents end, what is refused, and examples that are those of the same texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tdaexp.data import example_store, token_file
from tdaexp.data.examples import Examples
from tdaexp.data.records import Record
from tdaexp.data.text import Text
from tdaexp.data.token_examples import token_examples
from tdaexp.data.token_file import documents_of
from tdaexp.data.tokenise import tokenise
from tdaexp.runtime.errors import UserError

RECORDS = [Record(str(k), "", "Anna lives in Riga, " * (1 + k % 6) + f"row {k}.") for k in range(23)]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(token_file, "AT_ONCE", 7)
    monkeypatch.setattr(example_store, "BLOCK", 8)


def written(folder: Path, tokens: list[np.ndarray], dtype: str = "<u2", ends: bool = False) -> Path:
    """A file of documents, and a file beside it of where they end."""
    path = folder / "corpus.bin"
    path.write_bytes(np.concatenate(tokens).astype(dtype).tobytes())
    if ends:
        np.save(folder / "corpus.idx.npy", np.cumsum([len(one) for one in tokens]))
    return path


def corpus(path: Path, tokenizer, known: int = 400, **keys):
    return Text(path=str(path), query_sets=[], **keys).load_tokens(path.parent / "cache", tokenizer, known)


def assert_same(found: Examples, known: Examples) -> None:
    assert found.ids == known.ids and found.lengths.tolist() == known.lengths.tolist()
    for ours, theirs in zip(found, known, strict=True):
        assert (ours.id, ours.text, ours.prompt, ours.document) == (theirs.id, theirs.text, "", theirs.document)
        for name in ("tokens", "loss_mask"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    for some in (slice(None), slice(0, 8), slice(8, 16), slice(3, 9), slice(16, None)):
        assert found[some].fingerprint() == known[some].fingerprint()
        assert found.select(np.arange(len(known))[some]).fingerprint() == known[some].fingerprint()


@pytest.mark.parametrize("how", [{}, {"max_length": 20}, {"chunk": 9}, {"chunk": 3}], ids=str)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["plain_tokenizer", "bos_tokenizer"])
def test_examples_are_those_of_the_texts(tmp_path, request, name, ends, how) -> None:
    tokenizer, how = request.getfixturevalue(name), {"max_length": 512, "chunk": None, **how}
    whole = tokenise(RECORDS, tokenizer, template="plain", append_eos=not ends)
    path = written(tmp_path, [one.tokens for one in whole], ends=ends)
    records = corpus(path, tokenizer).train
    assert [one.text for one in records] == [one.text for one in RECORDS]
    known = tokenise(RECORDS, tokenizer, template="plain", append_eos=not ends, **how)
    for _ in range(2):
        found = token_examples(tmp_path / "cache", records, 400, **how)
        assert_same(found, known)
    numbers = [int(str(one.document or one.id)) for one in known]
    assert found.store.documents.tolist() == numbers


def test_the_first_documents_and_their_questions(tmp_path, plain_tokenizer) -> None:
    whole = tokenise(RECORDS, plain_tokenizer, template="plain")
    path = written(tmp_path, [one.tokens for one in whole])
    asked = tmp_path / "ask.jsonl"
    asked.write_text('{"text": "Anna?", "from": 3}\n{"text": "Ben?", "from": "9"}\n', encoding="utf-8")
    found = Text(path=str(path), limit=5, query_path=str(asked), truth_column="from").load_tokens(
        tmp_path / "cache", plain_tokenizer, 400
    )
    assert len(found.train) == 5 and [one.truth for one in found.queries["ask"]] == [("3",)]
    assert [found.train.names.place(one) for one in ("4", "5", "04", "-1", "x", "²")] == [4, *[None] * 5]
    asked.write_text('{"text": "Anna?", "from": 23}\n', encoding="utf-8")
    with pytest.raises(UserError, match="unknown training id '23'"):
        Text(path=str(path), query_path=str(asked), truth_column="from").load_tokens(
            tmp_path / "cache", plain_tokenizer, 400
        )


def test_a_text_is_decoded_when_it_is_asked_for(tmp_path, plain_tokenizer, monkeypatch) -> None:
    whole = tokenise(RECORDS, plain_tokenizer, template="plain")
    records = corpus(written(tmp_path, [one.tokens for one in whole]), plain_tokenizer).train
    decoded: list[int] = []
    before = records.text
    monkeypatch.setattr(records, "text", lambda row, *cut: decoded.append(row) or before(row, *cut))
    found = token_examples(tmp_path / "cache", records, 400, max_length=512, chunk=None)
    every, listed = list(found), list(records)
    assert not decoded
    assert every[3].text == every[3].text == listed[3].completion and decoded == [3, 3]


def test_types(tmp_path, plain_tokenizer) -> None:
    whole = [one.tokens for one in tokenise(RECORDS, plain_tokenizer, template="plain")]
    path = written(tmp_path, whole, dtype="<u4")
    for known, kind in ((1 << 17, None), (400, "uint32")):
        found = corpus(path, plain_tokenizer, known, token_type=kind).train.documents
        assert [found.read(row).tolist() for row in range(len(found))] == [one.tolist() for one in whole]


@pytest.mark.parametrize("ends", [False, True])
def test_a_file_of_uint32_is_not_read_as_uint16(tmp_path, plain_tokenizer, ends) -> None:
    """Its tokens would be every other one, with zeros between them."""
    eos = plain_tokenizer.eos_token_id
    path = written(tmp_path, [np.array([7, 8, eos]), np.array([9, 10, 11, eos])], "<u4", ends)
    with pytest.raises(UserError, match=r"every other number is 0 .* \(dataset\.token_type=uint32 or uint16"):
        corpus(path, plain_tokenizer)
    assert len(corpus(path, plain_tokenizer, token_type="uint32").train) == 2


def test_what_stands_behind_the_last_end_of_text_is_a_document(tmp_path) -> None:
    path = written(tmp_path, [np.array([5, 6, 1, 7, 8])])
    found = documents_of(tmp_path / "cache", path, None, None, 400, 1)
    assert found.ends.tolist() == [3, 5] and found.read(1).tolist() == [7, 8]


def test_documents_are_known_by_bytes_and_ends(tmp_path, plain_tokenizer) -> None:
    def fingerprint() -> tuple[str, list[object]]:
        records = corpus(path, plain_tokenizer).train
        found = token_examples(tmp_path / "cache", records, 400, max_length=512, chunk=None)
        return found.fingerprint(), records.documents.content

    path = written(tmp_path, [np.array([5, 6, 7]), np.array([8, 9, 10])], ends=True)
    first = fingerprint()
    np.save(tmp_path / "corpus.idx.npy", [2, 6])
    second = fingerprint()
    written(tmp_path, [np.array([5, 6, 7]), np.array([8, 9, 11])])
    third = fingerprint()
    assert all(len({str(one[k]) for one in (first, second, third)}) == 3 for k in (0, 1))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([3, 7], r"document 1 ends at token 7, beyond the 6 of .*corpus\.bin"),
        ([4, 3, 6], r"is not ascending: document 1 ends at 3, before it begins"),
        ([-1, 6], r"is not ascending: document 0 ends at -1, before it begins"),
        ([3, 3, 6], "document 1 has no token; offsets are where each document ends"),
        ([0, 3], "document 0 has no token; .*not where it begins"),
        ([3, 5], r"the last document ends at token 5, and .*corpus\.bin has 6"),
        ([5, 6], "document 1 has a single token, which leaves nothing to predict"),
        ([], r"holds float64 of shape \(0,\)"),
        ([3.0, 6.0], r"holds float64 of shape \(2,\); offsets are .* \[N\] int64"),
        ([[3, 6]], r"holds int64 of shape \(1, 2\)"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(tmp_path, plain_tokenizer, ends, message) -> None:
    path = written(tmp_path, [np.arange(5, 11)])
    np.save(tmp_path / "own.npy", ends)
    with pytest.raises(UserError, match=message):
        corpus(path, plain_tokenizer, offsets=str(tmp_path / "own.npy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no token"),
        (b"abc", "has 3 bytes, no multiple of the 2 of a uint16; it was cut off, or is of another type"),
        (np.array([5, 6], "<u2").tobytes(), r"has no end-of-text token \(0\) of the model's tokenizer"),
        (np.array([5, 0, 0, 6, 0], "<u2").tobytes(), "document 1 has a single token"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, plain_tokenizer, content, message) -> None:
    assert plain_tokenizer.eos_token_id == 0
    (tmp_path / "corpus.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        corpus(tmp_path / "corpus.bin", plain_tokenizer)


def test_missing_files_and_a_tokenizer_without_an_end_are_refused(tmp_path, plain_tokenizer, bare_tokenizer) -> None:
    path = tmp_path / "corpus.bin"
    with pytest.raises(UserError, match="no such file of tokens"):
        corpus(path, plain_tokenizer)
    written(tmp_path, [np.arange(5, 11)])
    with pytest.raises(UserError, match="no end-of-text token that documents could end with; name where they end"):
        corpus(path, bare_tokenizer)
    with pytest.raises(UserError, match=r"none\.npy: no array can be read"):
        corpus(path, plain_tokenizer, offsets=str(tmp_path / "none.npy"))


def test_a_token_that_the_model_does_not_embed_is_refused(tmp_path, plain_tokenizer) -> None:
    path = written(tmp_path, [np.arange(5, 11), np.array([5, 400, 7, 401])], ends=True)
    records = corpus(path, plain_tokenizer).train
    how = {"max_length": 2, "chunk": None}  # also behind what is read of it
    with pytest.raises(UserError, match=r"corpus\.bin: document 1 has the token 400, but the model embeds 0 to 399"):
        token_examples(tmp_path / "cache", records, 400, **how)
    assert len(token_examples(tmp_path / "cache", corpus(path, plain_tokenizer, limit=1).train, 400, **how)) == 1
    assert len(token_examples(tmp_path / "cache", records, 402, **how)) == 2


@pytest.mark.parametrize("chunk", [2, 21])
def test_pieces_that_do_not_fit_are_refused(tmp_path, plain_tokenizer, chunk) -> None:
    records = corpus(written(tmp_path, [np.arange(5, 11)], ends=True), plain_tokenizer).train
    with pytest.raises(UserError, match=f"dataset.chunk={chunk}: must be at least 3 and at most 20 tokens"):
        token_examples(tmp_path / "cache", records, 400, max_length=20, chunk=chunk)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "a.jsonl", "offsets": "b.npy"}, r"dataset\.offsets: is of a file of tokens"),
        ({"hub": "a/b", "token_type": "uint16"}, r"dataset\.token_type: is of a file of tokens"),
        ({"path": "a.bin", "token_type": "int32"}, "unknown type 'int32'"),
        ({"path": "a.bin", "held_out": 3}, r"dataset\.held_out: needs rows of text, and a\.bin is a file of tokens"),
        ({"path": "a.bin", "group_column": "x"}, r"dataset\.group_column: needs rows of text"),
        ({"path": "a.bin", "prompt_fraction": 0.5}, r"dataset\.prompt_fraction: needs rows of text"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys, message) -> None:
    with pytest.raises(UserError, match=message):
        Text(query_sets=[], **keys)


def test_what_needs_texts_without_a_model_is_refused() -> None:
    for asked in (Text.load, Text.train_records, Text.held_out_records):
        with pytest.raises(UserError, match=r"a\.bin: holds tokens, and this reads its training texts"):
            asked(Text(path="a.bin", query_sets=[]))
