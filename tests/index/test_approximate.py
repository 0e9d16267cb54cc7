"""Search by faiss against the exact one, on rows in blocks as an index has them."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tdaexp.data import best as best_module
from tdaexp.data.best import Best
from tdaexp.index import approximate as approximate_module
from tdaexp.index.approximate import Approximate
from tdaexp.index.blocks import Block
from tdaexp.index.found import by_faiss, recall_of
from tdaexp.index.index import Index
from tdaexp.index.meeting import Meeting, euclidean
from tdaexp.index.search import extremes
from tdaexp.index.storage import packed
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rows import rows_of

pytest.importorskip("faiss")
COLUMNS = {"first": slice(0, 5), "second": slice(5, 12)}
ROWS, K = 600, 3
COSINE = Meeting(euclidean)


class Generated(Index):
    """Rows of twelve numbers around twenty centres, in blocks of 64, in 8 bits."""

    def __init__(self, folder: Path, count: int = ROWS) -> None:
        compute = SimpleNamespace(device=torch.device("cpu"), cache_gb=1.0)
        self.problem: Any = SimpleNamespace(compute=compute, cache=folder, stores=set(), overhead=set(), wanted=None)
        self.making: Any = SimpleNamespace(width=12, storage="int8")
        self.columns, self.dtype, self.row_bytes, self.place = COLUMNS, np.dtype("f4"), 48, np.arange(count)
        cuts = [(start, min(start + 64, count)) for start in range(0, count, 64)]
        self.blocks = [Block(lambda at=at: folder / "blocks" / f"{at[0]:08x}{at[1]:08x}", *at) for at in cuts]
        rng = np.random.default_rng(0)
        table = rng.normal(size=(20, 12))[rng.integers(0, 20, ROWS)] + 0.3 * rng.normal(size=(ROWS, 12))
        table *= rng.lognormal(size=(ROWS, 1))
        for block in self.blocks:
            if not block.path.exists():
                block.write(*packed(torch.from_numpy(table[block.start : block.stop]).float(),
                                    list(COLUMNS.values()), "int8"), ["?"], 0.0)  # fmt: skip


QUESTIONS = np.random.default_rng(1).normal(size=(9, 12)).astype(np.float32)


def asked(index, best, meeting=COSINE, questions=QUESTIONS):
    return by_faiss(Approximate(index, meeting, best, 1.0), rows_of(questions))


@pytest.fixture
def few_centroids(monkeypatch):
    """Sixteen rows are enough for those of pq."""
    monkeypatch.setattr(best_module, "PER_CENTROID", 1)
    monkeypatch.setattr(approximate_module, "PER_CENTROID", 1)


@pytest.mark.parametrize("meeting", [COSINE, Meeting(weights=lambda: np.linspace(0.1, 2, ROWS)),
                                     Meeting(euclidean, lambda rows: rows * np.arange(1, 13, dtype=rows.dtype))],
                         ids=["cosine", "weights", "change"])  # fmt: skip
@pytest.mark.parametrize("how", [{"search": "flat", "rescored": 1}, {"search": "pq", "code_bytes": 8, "rescored": 100},
                                 {"search": "ivf", "lists": 15, "probes": 15, "rescored": 20}],
                         ids=["flat", "all rows again", "all lists"])  # fmt: skip
def test_where_nothing_can_be_missed_the_answer_is_the_exact_one(few_centroids, tmp_path, meeting, how):
    """All rows in float32, all lists, or half of all rows scored again on each side."""
    index = Generated(tmp_path)
    exact = extremes(index, QUESTIONS, K, meeting)
    numbers, told = asked(index, Best(k=K, **how), meeting)
    assert numbers.tolist() == exact.tolist()
    assert (told["search_recall_helpful"], told["search_recall_harmful"], told["search_questions"]) == (1.0, 1.0, 9.0)


def test_what_is_missed_is_measured_told_and_remembered(caplog, tmp_path):
    index, best = Generated(tmp_path), Best(k=K, search="ivf", lists=15, probes=2, rescored=2)
    exact, count = extremes(index, QUESTIONS, K, COSINE), ROWS
    with caplog.at_level(logging.INFO):
        numbers, told = asked(index, best)
    hits = [
        [len(set(a[:K]) & set(b[:K])) / K, len(set(a[K:]) & set(b[K:])) / K]
        for a, b in zip(numbers, exact, strict=True)
    ]
    helpful, harmful = np.mean(hits, axis=0)
    assert 0.3 < min(helpful, harmful) < 1
    assert (told["search_recall_helpful"], told["search_recall_harmful"]) == pytest.approx(
        (helpful, harmful), rel=1e-12
    )
    assert told["search"] == "IVF15,SQ8, 2 lists looked through, 6 rows a side scored again"
    assert f"index: IVF15,SQ8 by faiss of {count} rows is made" in caplog.text
    assert f"recall {100 * helpful:.1f} % of the 3 most helpful and {100 * harmful:.1f} % of the 3 most" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = asked(index, best, questions=QUESTIONS[:2])
        assert again[0].tolist() == numbers[:2].tolist() and again[1]["search_questions"] == 11  # few are not enough
        together = (np.sum(hits, axis=0) + np.sum(hits[:2], axis=0)) / 11
        assert again[1]["search_recall_helpful"] == pytest.approx(together[0], rel=1e-12)
        assert again[1]["search_recall_harmful"] == pytest.approx(together[1], rel=1e-12)
        enough = asked(index, best)[1]
        assert enough["search_questions"] == 20 and "as measured before" not in caplog.text
        assert asked(index, best, questions=QUESTIONS[:2])[1] == enough
    assert "as measured before" in caplog.text and "is made" not in caplog.text
    assert asked(index, replace(best, measured=2))[1]["search_questions"] == 2
    assert "search_recall_helpful" not in asked(index, replace(best, measured=0, rescored=3))[1]


def test_found_rows_stand_in_the_order_of_their_exact_scores(tmp_path):
    numbers, _ = asked(Generated(tmp_path), Best(k=40, search="ivf", lists=15, probes=5, rescored=1))
    index = Generated(tmp_path)
    for row, own in enumerate(numbers):
        rows = torch.from_numpy(index.rows(own))
        scores = COSINE.scores(torch.from_numpy(QUESTIONS[row : row + 1]), rows, torch.from_numpy(own))[0].numpy()
        assert (np.diff(scores) <= 0).all() and len(set(own.tolist())) == 80


def test_lists_with_fewer_rows_than_are_wanted(caplog, tmp_path):
    index, best = Generated(tmp_path), Best(k=100, search="ivf", lists=15, probes=1, measured=0)
    numbers, _ = asked(index, best)
    assert "of 9 questions hold fewer than 200 rows, so these were searched exactly" in caplog.text
    assert numbers.tolist() == extremes(index, QUESTIONS, 100, COSINE).tolist()


def test_further_blocks_and_damage(caplog, tmp_path):
    """What faiss has is of the blocks that there are, and is made again where it does not read as it was written."""
    best = Best(k=K, search="flat")
    fewer, whole = (Approximate(Generated(tmp_path, count), COSINE, best, 1.0) for count in (300, ROWS))
    for one in (fewer, whole):
        assert one.opened().ntotal == len(one.index.place)
    assert fewer.path != whole.path != Approximate(whole.index, Meeting(), best, 1.0).path
    file = whole.path / "rows.faiss"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.unlink()
    file.write_bytes(content)
    whole.opened()
    assert f"{whole.path}: damaged (rows.faiss: its checksum is wrong), and is made again" in caplog.text
    content[-5] ^= 1
    assert file.read_bytes() == bytes(content)


def test_recall_by_hand():
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = recall_of(np.array([[1, 4, 3, 4], [6, 5, 0, 9]]), exact)
    assert found == {"recall_helpful": 0.75, "recall_harmful": 0.5, "questions": 2.0}


def test_what_cannot_be_searched_so(monkeypatch, tmp_path):
    for keys, said in (
        ({"search": "hnsw"}, "hnsw"),
        ({"lists": 4}, "candidates.lists=4: is read by candidates.search=ivf; leave it out"),
        ({"search": "ivf", "code_bytes": 4}, "is read by candidates.search=pq"),
        ({"search": "ivf", "lists": 4, "probes": 5}, "candidates.probes=5: must be at most candidates.lists=4"),
        ({"search": "flat", "rescored": 0}, "candidates.rescored=0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            Best(**keys)
    with pytest.raises(UserError, match=r"39,936 rows, and there are 600; take candidates.lists=15 or fewer, or cand"):
        Best(search="ivf", lists=1024).check_rows(ROWS)
    with pytest.raises(UserError, match="256 centroids are fitted to at least 9,984 rows"):
        Best(search="pq").check_rows(ROWS)
    with pytest.raises(UserError, match=r"585 rows, 2.81e-05 GB; raise trainer.cache_gb=1e-05, or take fewer"):
        Approximate(Generated(tmp_path), COSINE, Best(search="ivf", lists=15), 1e-5).opened()
    monkeypatch.setattr(best_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"candidates.search=ivf: needs the package 'faiss'; pip install"):
        Best(search="ivf")
