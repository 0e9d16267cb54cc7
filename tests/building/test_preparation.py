"""From a configuration to a problem: two stages, drawn queries, cached trainings, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tdaexp.app.compose import open_composer
from tdaexp.app.plan import plan
from tdaexp.building.language import build_problem, with_generated
from tdaexp.building.texts import drawn, load_model, load_successor
from tdaexp.data.records import Corpus, Record
from tdaexp.runtime.errors import UserError
from tdaexp.training import trained

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALL = (
    "dataset=biographies_qa",
    "dataset.people=8",
    "dataset.relations=2",
    "dataset.phrasings=2",
    "model=toy_recall",
    "model.config.hidden_size=16",
    "model.config.num_hidden_layers=2",
    "model.config.intermediate_size=24",
    "model.vocab_size=320",
    "trainer.fit.steps=4",
    "trainer.finetune.steps=3",
    "decoding.max_new_tokens=4",
)


@pytest.fixture
def config(tmp_path):
    def make(*overrides):
        data = [text for text in overrides if text.startswith("dataset=")]
        own = [text for text in SMALL if not (data and text.startswith("dataset"))]
        with open_composer("attribute", CONF) as composer:
            (job,) = plan(composer, "attribute", [*own, f"cache_dir={tmp_path}", *overrides], False, ("tdaexp",)).jobs
        return job.config

    return make


def loaded_pair(config):
    corpus = config.dataset.load()
    first = load_model(config, corpus.train)
    return corpus, first, load_successor(config, corpus.finetune, first)


def test_the_second_stage_goes_on_from_the_first_and_both_are_cached(config, monkeypatch):
    corpus, first, second = loaded_pair(config())
    one, two = first.model.state_dict(), second.model.state_dict()
    assert any(not torch.equal(one[name], two[name]) for name in one)
    problem = build_problem(config(), corpus, first, second)
    assert problem.loaded is first and problem.model is first.model and problem.identity == first.fingerprint
    assert problem.finetuned.loaded is second and problem.map.names == problem.finetuned.map.names
    assert problem.finetuned.examples.ids == [record.id for record in corpus.finetune]
    assert first.fingerprint != second.fingerprint
    monkeypatch.setattr(trained, "fit", lambda *_, **__: pytest.fail("trained again"))
    _, again, successor = loaded_pair(config())
    assert (again.fingerprint, successor.fingerprint) == (first.fingerprint, second.fingerprint)


def test_a_changed_second_stage_is_trained_again_and_the_first_is_not(config, monkeypatch):
    _, first, second = loaded_pair(config())
    starts = []
    real = trained.fit
    monkeypatch.setattr(
        trained, "fit", lambda start, *a, **k: (starts.append(start.fingerprint), real(start, *a, **k))[1]
    )
    _, again, other = loaded_pair(config("trainer.finetune.steps=2"))
    assert len(starts) == 1 and again.fingerprint == first.fingerprint and other.fingerprint != second.fingerprint


def test_a_named_successor_is_loaded_and_checked(config, tmp_path):
    corpus, first, second = loaded_pair(config())
    folder = str(second.model.name_or_path)
    named = load_successor(config(f"model.finetuned={folder}"), corpus.finetune, first)
    for name, value in named.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    other = config("model.config.num_hidden_layers=3", "trainer.fit.steps=0")
    deeper = load_model(other, corpus.train)
    with pytest.raises(UserError, match=r"model\.finetuned=.*has 2 layers, while model\.pretrained has 3"):
        load_successor(config(f"model.finetuned={folder}"), corpus.finetune, deeper)


def test_without_second_records_there_is_one_stage(config):
    settings = config("dataset=biographies", "dataset.people=8", "dataset.query_sets=[paraphrased]")
    corpus, first, second = loaded_pair(settings)
    assert second is None and build_problem(settings, corpus, first, second).finetuned is None


def test_the_fine_tuned_model_answers_for_itself(config):
    settings = config("dataset.query_sets=[facts,generated]")
    corpus, first, second = loaded_pair(settings)
    whole = with_generated(settings, corpus, second)
    facts, own = whole.queries["facts"], whole.queries["generated"]
    assert [record.prompt for record in own] == [record.prompt for record in facts]
    assert [record.truth for record in own] == [record.truth for record in facts]
    assert len({record.id for record in [*facts, *own]}) == 2 * len(facts) and whole.finetune == corpus.finetune
    assert all(record.completion.startswith(" ") for record in [*facts, *own])  # as it stands behind the prompt
    problem = build_problem(settings, whole, first, second)
    assert problem.query_set == ["facts"] * len(facts) + ["generated"] * len(facts)


def test_queries_are_drawn_by_the_seed_in_their_order():
    records = [Record(f"q{k}", "p", "c") for k in range(30)]
    corpus = Corpus([Record("t", "p", "c")], {"a": records, "b": records[:3]})
    five, all_of_them = (SimpleNamespace(query_limit=limit, query_seed=None) for limit in (5, None))
    some = drawn(corpus, five, 0)
    assert [len(queries) for queries in some.queries.values()] == [5, 3]
    places = [records.index(record) for record in some.queries["a"]]
    assert places == sorted(places) and some == drawn(corpus, five, 0) != drawn(corpus, five, 1)
    assert drawn(corpus, all_of_them, 0) is corpus
    apart = SimpleNamespace(query_limit=5, query_seed=0)
    assert drawn(corpus, apart, 1) == drawn(corpus, apart, 2) == some
    assert np.isin(places, range(30)).all() and dataclasses.is_dataclass(some)
