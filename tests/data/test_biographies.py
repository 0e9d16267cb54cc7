"""Generated biographies: known sources, true paraphrases, the same text from the same seed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tdaexp.data.biographies import Biographies, draw_people
from tdaexp.data.candidates import BM25
from tdaexp.data.vocabulary import people
from tdaexp.runtime.errors import UserError


@pytest.fixture(scope="module")
def corpus():
    return Biographies().load()


def test_the_same_seed_gives_the_same_text_and_another_one_another(corpus) -> None:
    assert Biographies().load() == corpus
    assert [r.text for r in Biographies(seed=1).load().train] != [r.text for r in corpus.train]


def test_the_text_of_seed_0_is_pinned() -> None:
    """A change of the generator changes every number that was measured on it: make it knowingly."""
    first = Biographies(people=2, topics=1).load()
    assert [record.text for record in first.train] == [
        "Summarise the origins of Wanda Lopez of Market Street.\n"
        "Wanda Lopez's birthplace is Vienna. She was born in 1968. Her mother worked as a librarian.",
        "Sketch the first years of Leon Ferrari of Mill Street.\n"
        "Leon Ferrari is a native of Utrecht. His life began in the year 1955. At home his mother was known "
        "as a driver.",
    ]


def test_default_size_and_vocabulary(corpus) -> None:
    words = [re.findall(r"\w+|[^\w\s]", record.text) for record in corpus.train]
    assert len(words) == 600
    assert min(map(len, words)) >= 25 and max(map(len, words)) <= 50
    vocabulary = {word for record in words for word in record}
    assert len(vocabulary) < 1000
    queries = {word for q in corpus.queries["paraphrased"] for word in re.findall(r"\w+|[^\w\s]", q.text)}
    assert queries <= vocabulary


def test_every_record_states_its_facts_once_and_the_paraphrase_states_them_too(corpus) -> None:
    for record, query in zip(corpus.train, corpus.queries["paraphrased"], strict=True):
        assert query.truth == (record.id,)
        assert query.meta == record.meta
        assert record.meta["person"] in record.prompt and record.meta["person"] in query.prompt
        for text in (record.completion, query.completion):
            assert text.count(record.meta["person"]) == 1
            sentences = text.removesuffix(".").split(". ")
            assert len(sentences) == 3
            for sentence, answer in zip(sentences, record.meta["answer"], strict=True):
                assert answer in sentence


def test_a_paraphrase_repeats_no_sentence_and_no_prompt(corpus) -> None:
    for record, query in zip(corpus.train, corpus.queries["paraphrased"], strict=True):
        assert record.prompt != query.prompt
        mine, other = (set(r.completion.removesuffix(".").split(". ")) for r in (record, query))
        assert not mine & other


def test_a_fact_is_the_same_wherever_it_is_told(corpus) -> None:
    people = {person.name: person for person in draw_people(300, 0)}
    for record in corpus.train:
        for relation, answer in zip(record.meta["relation"], record.meta["answer"], strict=True):
            assert people[record.meta["person"]].facts[relation] == answer


def test_names_are_unique_as_a_whole_and_shared_in_their_parts() -> None:
    names = [person.name for person in draw_people(300, 0)]
    assert len(set(names)) == 300
    firsts, lasts = (np.unique([name.split()[k] for name in names], return_counts=True)[1] for k in (0, 1))
    assert firsts.mean() > 5 and lasts.mean() > 3


def test_friends_and_companions_are_other_people_of_the_draw() -> None:
    people = draw_people(7, 3)
    names = {person.name for person in people}
    for relation in ("friend", "companion"):
        assert {person.facts[relation] for person in people} == names
        assert all(person.facts[relation] != person.name for person in people)


def test_fact_queries_name_the_one_record_that_answers_them() -> None:
    corpus = Biographies(people=30, topics=6, query_sets=["facts"]).load()
    assert list(corpus.queries) == ["facts"]
    train = {record.id: record for record in corpus.train}
    assert len(corpus.queries["facts"]) == 30 * 6 * 3
    for query in corpus.queries["facts"]:
        (source,) = query.truth
        record = train[source]
        assert record.meta["person"] == query.meta["person"]
        assert query.meta["answer"] in record.completion
        assert query.completion == f"{query.meta['answer']}."
        position = record.meta["relation"].index(query.meta["relation"])
        assert record.meta["answer"][position] == query.meta["answer"]


def test_fewer_facts_and_other_topics() -> None:
    corpus = Biographies(people=5, topics=6, facts=1).load()
    assert len(corpus.train) == 30
    assert all(len(record.meta["answer"]) == 1 for record in corpus.train)
    assert {record.meta["topic"] for record in corpus.train} == {topic.name for topic in people().topics}


@pytest.mark.parametrize("topic", people().topics, ids=lambda topic: topic.name)
def test_phrasings_are_usable(topic) -> None:
    assert all("{theme}" in frame for frame in people().frames)
    assert len(set(topic.themes)) == len(topic.themes) >= 2
    assert all(theme.count("{who}") == 1 for theme in topic.themes)
    assert len(topic.relations) == 3
    for relation in topic.relations:
        assert len(set(relation.sentences)) == len(relation.sentences) == len(people().frames)
        assert all(s.count("{v}") == 1 and s.endswith(".") for s in relation.sentences)
        assert "{name}" in relation.question


def test_the_first_relation_of_a_topic_always_names_the_person() -> None:
    """Else a completion would not say whom it is about."""
    for topic in people().topics:
        for sentence in topic.relations[0].sentences:
            assert re.search(r"\{[SsoPp]\}", sentence), sentence


@pytest.mark.parametrize("seed", [0, 1])
def test_bm25_is_good_but_not_perfect(seed: int) -> None:
    """As in the study, where BM25's first hit is right for 0.836 of the queries."""
    corpus = Biographies(seed=seed).load()
    queries = corpus.queries["paraphrased"]
    chosen = BM25(ensure_truth=False).select(queries, corpus.train)
    hits = [
        [corpus.train[j].id in query.truth for j in row] for query, row in zip(queries, chosen.indices, strict=True)
    ]
    assert 0.70 < np.mean([row[0] for row in hits]) < 0.90
    assert np.mean([any(row) for row in hits]) > 0.95


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"people": 1}, "dataset.people=1: must lie between 2 and"),
        ({"people": people().most_people + 1}, "dataset.people"),
        ({"topics": 7}, "between 1 and 6"),
        ({"facts": 0}, "between 1 and 3"),
        ({"query_sets": ["paraphrase"]}, "did you mean 'paraphrased'"),
        ({"loss_on": "prompt"}, "dataset.loss_on"),
        ({"max_length": 1}, "dataset.max_length=1"),
    ],
)
def test_bad_values_are_named(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Biographies(**keys)
