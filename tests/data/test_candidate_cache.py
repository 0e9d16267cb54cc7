import numpy as np
import pytest

from tdaexp.data.candidate_cache import cached_candidates
from tdaexp.data.candidates import BM25
from tdaexp.data.records import Record
from tdaexp.runtime.errors import UserError

TRAIN = [Record(f"t{k}", f"who wrote book {k}", f"author {k}") for k in range(6)]
QUERIES = [Record("q", "book 3 by whom", "author 3", truth=("t3",))]


def test_the_second_call_computes_nothing(tmp_path, monkeypatch):
    first = cached_candidates(BM25(b=3), QUERIES, TRAIN, tmp_path)
    direct = BM25(b=3).select(QUERIES, TRAIN)
    np.testing.assert_array_equal(first.indices, direct.indices)
    monkeypatch.setattr(BM25, "select", lambda *_: pytest.fail("computed again"))
    again = cached_candidates(BM25(b=3), QUERIES, TRAIN, tmp_path)
    np.testing.assert_array_equal(again.indices, direct.indices)
    np.testing.assert_array_equal(again.bm25, direct.bm25)


def test_other_settings_or_texts_are_other_candidates(tmp_path):
    first = cached_candidates(BM25(b=3), QUERIES, TRAIN, tmp_path)
    assert cached_candidates(BM25(b=2), QUERIES, TRAIN, tmp_path).indices.shape == (1, 2)
    other = cached_candidates(BM25(b=3), QUERIES, TRAIN[::-1], tmp_path)
    assert not np.array_equal(first.indices, other.indices)


def test_a_damaged_file_is_named(tmp_path):
    cached_candidates(BM25(b=3), QUERIES, TRAIN, tmp_path)
    (file,) = tmp_path.glob("[!.]*/candidates.npz")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"candidates.npz: its checksum is wrong"):
        cached_candidates(BM25(b=3), QUERIES, TRAIN, tmp_path)
