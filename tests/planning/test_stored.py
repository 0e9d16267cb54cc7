"""What a plan knows of stored records: sizes from a few of them, and what they take on the disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tdaexp.data import files
from tdaexp.data.kept_examples import kept_examples
from tdaexp.data.sizes import sizes_of
from tdaexp.data.text import Text
from tdaexp.data.token_examples import token_examples
from tdaexp.planning.blank import Blank
from tdaexp.planning.stored import in_tokens, sizes_of_stored, sizes_of_tokens, stored_bytes


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>")


@pytest.fixture
def data(tmp_path, monkeypatch) -> Text:
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    rows = [{"id": f"row{k}", "text": "a b " * (2 + k % 13)} for k in range(2500)]
    rows[1700]["text"] = "a " * 300
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Text(path=str(tmp_path / "rows.jsonl"), query_sets=[])


@pytest.mark.parametrize("chunk", [None, 10])
def test_sizes_of_a_few_stand_for_all_and_the_longest_is_among_them(data, tokenizer, tmp_path, chunk) -> None:
    records = data.load_kept(tmp_path / "cache").train
    seen: list[int] = []

    def sized(some):
        seen.append(len(some))
        return sizes_of(some, tokenizer, max_length=512, loss_on="completion", chunk=chunk)

    found, known = sizes_of_stored(records, sized), sized(data.load().train)
    assert seen[:2] == [500, 500] and found.tokens.max() == known.tokens.max()
    assert abs(len(found) / len(known) - 1) < 0.1
    assert abs(found.tokens.sum() / known.tokens.sum() - 1) < 0.1


def test_the_plan_counts_what_the_stores_take(data, tokenizer, tmp_path) -> None:
    records = data.load_kept(tmp_path / "cache").train
    kept = kept_examples(tmp_path / "tokens", records, tokenizer, 3, lambda _: None, max_length=512, chunk=None)
    taken = sum(file.stat().st_size for one in (records.path, tmp_path / "tokens") for file in one.iterdir())
    sizes = sizes_of(data.load().train, tokenizer, max_length=512, loss_on="completion")
    assert len(kept) == len(sizes) and taken <= stored_bytes(data, sizes, 3) <= 1.5 * taken
    data.held_out = 3
    assert stored_bytes(data, sizes, 3) == 0


@pytest.mark.parametrize("chunk", [None, 10])
def test_sizes_of_a_file_of_tokens_are_those_of_its_examples(tokenizer, tmp_path, chunk) -> None:
    lengths = 2 + np.arange(40) % 33
    (tmp_path / "rows.bin").write_bytes(np.ones(lengths.sum(), dtype="<u2").tobytes())
    np.save(tmp_path / "rows.idx.npy", np.cumsum(lengths))
    data = Text(path=str(tmp_path / "rows.bin"), query_sets=[])
    records = data.load_tokens(tmp_path / "cache", tokenizer, 3).train
    found = sizes_of_tokens(records, tokenizer, 20, chunk)
    known = token_examples(tmp_path / "cache", records, 3, max_length=20, chunk=chunk)
    assert found.tokens.tolist() == known.lengths.tolist() and len(found) == (40 if chunk is None else 85)
    assert in_tokens(data) and stored_bytes(data, found, 3) == 0


def test_blank_examples_are_those_of_their_sizes(data, tokenizer) -> None:
    sizes = sizes_of(data.load().train[:40], tokenizer, max_length=20, loss_on="completion")
    found, known = Blank(sizes, "t"), sizes.examples("t")
    assert found.ids == known.ids and found.lengths.tolist() == known.lengths.tolist() == sizes.tokens.tolist()
    assert (
        found.fingerprint() == known.fingerprint()
        and found[3:9].fingerprint() == known.select(range(3, 9)).fingerprint()
    )
    for ours, theirs in zip(found.select([5, 2]), known.select([5, 2]), strict=True):
        assert ours.id == theirs.id
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
        np.testing.assert_array_equal(ours.loss_mask, theirs.loss_mask)
