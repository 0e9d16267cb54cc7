"""Two stages with a known truth: what the documents state, what is taught, and what is asked."""

from __future__ import annotations

import pytest

from tdaexp.data.biographies_qa import BiographiesQA
from tdaexp.runtime.errors import UserError

SMALL = {"people": 12, "taught": 0.5, "relations": 5, "phrasings": 3}


def test_the_truth_is_every_document_that_states_the_fact_and_no_other():
    data = BiographiesQA(**SMALL)
    corpus = data.load()
    documents = {record.id: record.text for record in corpus.train}
    assert len(documents) == 12 * 5 * 3 and len(corpus.queries["facts"]) == len(corpus.finetune) == 6 * 5
    for query in corpus.queries["facts"]:
        assert len(query.truth) == 3
        answer, person = query.meta["answer"], query.meta["person"]
        assert query.completion == f" {answer}." and person in query.prompt
        assert all(answer in documents[name] and person in documents[name] for name in query.truth)
        others = [
            r for r in corpus.train if r.meta["person"] == person and r.meta["relation"] == query.meta["relation"]
        ]
        assert {record.id for record in others} == set(query.truth)


def test_nobody_is_both_taught_and_asked_about():
    corpus = BiographiesQA(**SMALL).load()
    asked = {record.meta["person"] for record in corpus.queries["facts"]}
    taught = {record.meta["person"] for record in corpus.finetune}
    assert not asked & taught and asked | taught == {record.meta["person"] for record in corpus.train}
    assert not any(person in record.text for person in asked for record in corpus.finetune)


def test_documents_are_shuffled_and_repeatable():
    one, two, other = BiographiesQA(**SMALL), BiographiesQA(**SMALL), BiographiesQA(**SMALL, seed=1)
    assert one.load() == two.load() and one.load() != other.load()
    ids = [record.id for record in one.train_records()]
    assert ids != sorted(ids) and one.load().train == one.train_records()
    assert one.load().finetune == one.finetune_records()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"people": 3}, "dataset.people=3: must lie between 4 and 2400"),
        ({"relations": 9}, "dataset.relations=9: must lie between 1 and 8"),
        ({"phrasings": 6}, "dataset.phrasings=6: must lie between 1 and 5"),
        ({"taught": 1.0}, "dataset.taught=1.0: must leave people"),
        ({"taught": 0.0}, "dataset.taught=0.0: must leave people"),
        ({"query_sets": ["paraphrased"]}, "unknown query set 'paraphrased'"),
    ],
)
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        BiographiesQA(**keys)
