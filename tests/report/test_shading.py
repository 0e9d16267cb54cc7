import json

import numpy as np
import pytest
from test_report import Page

from tdaexp.report.report import write_report
from tdaexp.report.shading import LEVELS, shade, tokens_json
from tdaexp.report.shown import shown_queries


@pytest.fixture
def store(full_store):
    """The full store with the tokens of each query's first candidate, which tries to be markup for `t1`."""
    plain = full_store.isel(component=[0]).drop_vars(["query_sq", "train_sq"]).assign_attrs(normalise="none")
    scores = plain["influence"].values[..., 0]
    best = scores.argmax(1)
    top = scores.max(1)[:, None]
    train = np.stack([top * part for part in (1.5, -0.5, np.nan)], axis=2)
    query = np.stack([top * part for part in (0.01, 0.99)], axis=2)
    tokens = np.broadcast_to(np.array(["<i>up", " down", ""], dtype=object), train.shape)
    return plain.assign(
        best=(("query", "rank"), best[:, None]),
        train_share=(("query", "rank", "train_position"), train),
        query_share=(("query", "rank", "query_position"), query),
    ).assign_coords(
        train_token=(("query", "rank", "train_position"), tokens),
        query_token=(("query", "query_position"), np.array([["why", "?"]] * 20, dtype=object)),
    )


def test_the_file_has_every_pair_and_its_sums(store):
    rows = json.loads(tokens_json(store))
    scores = store["influence"].values[..., 0]
    assert len(rows) == 20
    for row, score, column, names in zip(rows, scores.max(1), scores.argmax(1), store["train"].values, strict=True):
        assert row["train"] == names[column] and row["rank"] == 1 and row["score"] == score
        assert row["train_tokens"] == ["<i>up", " down"] and row["query_tokens"] == ["why", "?"]
        assert sum(row["train_shares"]) == pytest.approx(score) == pytest.approx(sum(row["query_shares"]))


def test_shades_have_sign_and_strength():
    pieces = shade(["a", "b", "c", "d"], [4.0, -2.0, 0.01, -4.0])
    assert [piece.shade for piece in pieces] == [f"p{LEVELS}", f"n{LEVELS // 2}", "", f"n{LEVELS}"]
    assert [piece.share for piece in pieces] == ["4", "-2", "0.01", "-4"]
    assert [piece.shade for piece in shade(["a"], [0.0])] == [""] and shade([], []) == []


def test_the_page_shades_the_pairs_that_have_tokens(tmp_path, store, texts, quick):
    write_report(tmp_path, {"ekfac": store}, texts, quick)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Shaded tokens: their shares of the pair's score." in page.text
    score = float(store["influence"].values[0].max())
    sign = "p" if score > 0 else "n"
    assert f'<b class="{sign}{LEVELS}" title="{1.5 * score:.3g}">&lt;i&gt;up</b>' in text
    assert text.count('<div class="tokens-of">question</div>') == 20
    assert '<div class="tokens-of">ekfac' not in text
    sides = [
        side for items in shown_queries({"ekfac": store}, texts, 2)["paraphrased"] for side in items.sides.values()
    ]
    rows = [row for side in sides for row in side]
    assert {row.id for row in rows if not row.shaded} and sum(bool(row.shaded) for row in rows) == 10


@pytest.mark.long
def test_of_several_stores_each_shows_its_own(tmp_path, store, full_store, texts, quick):
    write_report(tmp_path, {"ekfac": store, "full": full_store, "other": store}, texts, quick)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    # a row on which the methods disagree stands on both sides
    assert text.count('<div class="tokens-of">ekfac</div>') == text.count('<div class="tokens-of">other</div>') >= 20


@pytest.mark.long
def test_without_tokens_there_is_no_legend(tmp_path, full_store, texts, quick):
    write_report(tmp_path, {"full": full_store}, texts, quick)
    assert "Shaded tokens" not in (tmp_path / "report.html").read_text(encoding="utf-8")
