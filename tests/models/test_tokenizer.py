import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tdaexp.models.tokenizer import pieces, train_tokenizer
from tdaexp.runtime.errors import UserError

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "naïve café, 東京"] * 3
TOKENIZER = train_tokenizer(TEXTS, 290)


def test_the_same_texts_give_the_same_tokenizer_and_others_another():
    again = train_tokenizer(list(TEXTS), 290).backend_tokenizer.to_str()
    assert again == TOKENIZER.backend_tokenizer.to_str()
    assert train_tokenizer(["dogs", "logs"] * 5, 290).backend_tokenizer.to_str() != again


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<|" not in text))
def test_any_text_survives_encoding(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert all(3 <= token < len(TOKENIZER) for token in ids)


def test_special_tokens_and_bos_in_front():
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (0, 1, 2)
    assert TOKENIZER("the cat")["input_ids"][0] == 0
    assert TOKENIZER.decode(TOKENIZER("the cat")["input_ids"], skip_special_tokens=True) == "the cat"


def test_merges_make_frequent_text_short_and_the_size_is_a_ceiling():
    assert len(TOKENIZER) <= 290
    assert len(TOKENIZER("the", add_special_tokens=False)["input_ids"]) == 1
    assert len(train_tokenizer(["ab"], 5000)) == 259  # no pair occurs twice: bytes and special tokens only


def test_a_saved_tokenizer_loads_as_it_was(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the naïve cat 東京", "", " two  blanks "):
        assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == TOKENIZER.decode(TOKENIZER(text)["input_ids"])
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"model\.vocab_size=258"):
        train_tokenizer(TEXTS, 258)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
def test_pieces_are_the_text_cut_at_the_tokens(text):
    ids = TOKENIZER(text)["input_ids"]
    found = pieces(TOKENIZER, ids)
    assert len(found) == len(ids) and "".join(found) == TOKENIZER.decode(ids)


def test_a_character_of_several_tokens_stands_at_the_last():
    ids = TOKENIZER("a🙂b", add_special_tokens=False)["input_ids"]
    assert pieces(TOKENIZER, ids) == ["a", "", "", "", "🙂", "b"]
