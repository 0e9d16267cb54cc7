"""Pieces of long texts: every token that carries loss is predicted in exactly one, and read behind its own text."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from gradient_oracle import VOCABULARY, build_model, make_examples, oracle

from tdaexp.data.candidates import Candidates
from tdaexp.data.chunks import cut_into_chunks
from tdaexp.data.examples import Examples
from tdaexp.data.pieces import labels_of, of_pieces
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.components import component_map
from tdaexp.runtime.errors import UserError

LONG = Record("long", "Where?", "Anna lives in Riga. " * 12, meta={"source": "wiki"})
SHORT = Record("short", "Who?", "Anna.")


@pytest.mark.parametrize("kind", ["plain", "bos"])
@pytest.mark.parametrize("chunk", [3, 4, 7, 20])
def test_pieces_hold_every_predicted_token_once(request, kind: str, chunk: int) -> None:
    tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    kept = int(kind == "bos")
    whole, found = tokenise([LONG], tokenizer)[0], tokenise([LONG], tokenizer, chunk=chunk)
    assert len(found) > 1 and all(one.length <= chunk and one.document == "long" for one in found)
    assert [one.id for one in found] == [f"long#{k}" for k in range(1, len(found) + 1)]
    predicted = [token for one in found for token in one.tokens[one.loss_mask]]
    assert predicted == whole.tokens[whole.loss_mask].tolist()
    for one in found:  # what a piece reads is a stretch of the text, behind bos where there is one
        stretch = one.tokens[kept:].tolist()
        places = [k for k in range(whole.length) if whole.tokens[k : k + len(stretch)].tolist() == stretch]
        assert places and (one.tokens[:kept] == whole.tokens[:kept]).all()
        assert not one.loss_mask[: kept + 1].any() or places[0] <= kept


def test_short_texts_stay_as_they_are(plain_tokenizer, caplog) -> None:
    with caplog.at_level(logging.INFO):
        cut = tokenise([SHORT, LONG], plain_tokenizer, chunk=30)
    plain = tokenise([SHORT], plain_tokenizer)
    assert cut[:1].fingerprint() == plain.fingerprint()
    assert f"2 texts in {len(cut)} pieces" in caplog.text
    assert "Anna lives in Riga." in cut[1].text
    belongs = labels_of([SHORT, LONG], cut)
    assert belongs["document"] == ["short"] + ["long"] * (len(cut) - 1)
    assert belongs["source"] == [""] + ["wiki"] * (len(cut) - 1)
    assert labels_of([SHORT], plain) == {}


def test_loss_on_all_adds_up_too(plain_tokenizer) -> None:
    (whole,) = tokenise([LONG], plain_tokenizer, loss_on="all")
    found = tokenise([LONG], plain_tokenizer, loss_on="all", chunk=9)
    assert sum(int(one.loss_mask.sum()) for one in found) == int(whole.loss_mask.sum()) == whole.length - 1


def test_pieces_of_a_model_without_memory_add_up_to_the_whole_gradient() -> None:
    """Of a model that reads one token at a time, a piece's text is all that counts: the sums are equal."""
    model = build_model("llama-untied")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    (example,) = make_examples(3, 1, shortest=30, longest=30)
    assert example.tokens.max() < VOCABULARY

    class Silent:
        def decode(self, tokens, skip_special_tokens):
            return ""

    pieces = cut_into_chunks([example], 7, 0, Silent())
    assert len(pieces) > 3
    (whole,), parts = oracle(model, Examples([example]), "sum"), oracle(model, pieces, "sum")
    for k, component in enumerate(component_map(model).components):
        if component.name.endswith("attn.o"):
            continue  # whose own gradient is of what it would have read
        gradient = whole[k]
        assert "attn" in component.name or gradient.norm() > 1e-3
        torch.testing.assert_close(sum(part[k] for part in parts), gradient, rtol=1e-9, atol=1e-9)


def test_a_chunk_that_does_not_fit_and_an_id_that_is_taken_are_refused(plain_tokenizer) -> None:
    with pytest.raises(UserError, match=r"dataset\.chunk=50: must be at least 3 and at most 40 tokens"):
        tokenise([LONG], plain_tokenizer, max_length=40, chunk=50)
    with pytest.raises(UserError, match=r"dataset\.chunk=2"):
        tokenise([LONG], plain_tokenizer, chunk=2)
    with pytest.raises(UserError, match="'long' would be called 'long#1', which is another record's id"):
        tokenise([LONG, Record("long#1", "", "x y z")], plain_tokenizer, chunk=10)


def test_candidates_among_documents_become_candidates_among_pieces() -> None:
    documents = np.array([0, 0, 1, 2, 2, 2])
    found = of_pieces(Candidates(np.array([[2, 0], [1, -1]]), np.array([[3.0, 1.0], [2.0, np.nan]])), documents)
    assert found.indices.tolist() == [[3, 4, 5, 0, 1], [2, -1, -1, -1, -1]]
    np.testing.assert_array_equal(found.bm25, [[3, 3, 3, 1, 1], [2, *[np.nan] * 4]])
    same = Candidates(np.array([[1, 0]]), np.array([[1.0, 0.0]]))
    assert of_pieces(same, np.arange(2)) is same
    none = of_pieces(Candidates(np.zeros((0, 3), np.int64), np.zeros((0, 3))), documents)
    assert none.indices.shape == none.bm25.shape == (0, 0)
