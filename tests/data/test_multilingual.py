"""Generated sentences in several languages, and draws that keep each group's share."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tdaexp.data.groups import groups_of, stratified
from tdaexp.data.multilingual import Multilingual
from tdaexp.data.text import Text
from tdaexp.data.vocabulary import scenes
from tdaexp.runtime.errors import UserError


def test_every_language_says_the_same_number_of_things():
    assert {tuple(len(words) for words in lists) for lists in scenes().values()} == {(8, 8, 8, 8)}


def test_half_is_english_and_nothing_held_out_is_trained_on():
    data = Multilingual(records=600, held_out=60)
    train, held = data.train_records(), data.held_out_records()
    assert len(train) == 540 and len(held) == 60
    assert not {record.id for record in train} & {record.id for record in held}
    counts = Counter(groups_of([*train, *held]))
    assert set(counts) == set(scenes()) and abs(counts["en"] - 300) < 40
    shares = Counter(groups_of(held))
    assert all(abs(shares[name] - counts[name] / 10) <= 1 for name in scenes())
    assert train[0].text.count(".") == 4 and train == Multilingual(records=600, held_out=60).train_records()
    assert Multilingual(languages=["de"], records=20, held_out=0).train_records()[3].meta == {"group": "de"}


@pytest.mark.parametrize("keys", [{"languages": ["eo"]}, {"languages": []}, {"held_out": 1200}, {"sentences": 0}])
def test_impossible_keys_are_refused(keys):
    with pytest.raises(UserError, match="dataset"):
        Multilingual(**keys)


def test_a_draw_keeps_shares_and_is_repeatable():
    groups = ["a"] * 50 + ["b"] * 30 + ["c"] * 20
    drawn = stratified(groups, 25, [0, 7], "key")
    assert len(set(drawn.tolist())) == 25 and (np.diff(drawn) > 0).all()
    assert Counter(groups[place] for place in drawn) == {"a": 13, "b": 7, "c": 5} or Counter(
        groups[place] for place in drawn
    ) == {"a": 12, "b": 8, "c": 5}
    assert np.array_equal(drawn, stratified(groups, 25, [0, 7], "key"))
    assert not np.array_equal(drawn, stratified(groups, 25, [0, 8], "key"))
    assert np.array_equal(stratified(groups, 100, [0], "key"), np.arange(100))
    with pytest.raises(UserError, match="key=101: there are 100"):
        stratified(groups, 101, [0], "key")


def test_a_column_names_the_groups_of_a_file(tmp_path):
    file = tmp_path / "text.tsv"
    rows = [f"{number}\t{'de' if number % 4 == 0 else 'en'}\tword {number}\tother {number}" for number in range(40)]
    file.write_text("\n".join(["id\tlang\ttext\tagain", *rows]), encoding="utf-8")
    keys = {"path": str(file), "id_column": "id", "text_column": "text", "paraphrase_column": "again"}
    data = Text(**keys, group_column="lang", held_out=8)
    held = data.held_out_records()
    assert Counter(groups_of(held)) == {"en": 6, "de": 2}
    train = data.train_records()
    assert len(train) == 32 and not {r.id for r in train} & {r.id for r in held}
    for record, query in zip(train, data.own_paraphrases(train), strict=True):
        assert query.truth == (record.id,) and query.completion == f"other {record.id}"
    assert groups_of(Text(**keys).train_records()) == ["all"] * 40 and not Text(**keys).held_out_records()
