"""Fact tracing from small files in the formats of T-REx, LAMA and FTRACE."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import pytest

from tdaexp.data.questions import QUESTIONS, SUBJECT
from tdaexp.data.trex import TREx
from tdaexp.runtime.errors import UserError

ENTITY, PROPERTY = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/direct/"
DATE = "1879-03-14T00:00:00Z^^http://www.w3.org/2001/XMLSchema#dateTime"


def triple(sentence: int, relation: str, subject: str, answer: str) -> dict:
    """A triple as T-REx writes it."""
    return {
        "predicate": {"uri": PROPERTY + relation, "boundaries": None, "surfaceform": None, "annotator": "SPOAligner"},
        "subject": {"uri": ENTITY + subject, "boundaries": [0, 8], "surfaceform": "s", "annotator": "Wikidata"},
        "object": {"uri": answer, "boundaries": [19, 22], "surfaceform": "o", "annotator": "Wikidata"},
        "sentence_id": sentence,
        "dependency_path": None,
        "confidence": None,
        "annotator": "SPOAligner",
    }


def document(name: str, sentences: list[str], triples: list[dict]) -> dict:
    """A document as T-REx writes it: sentences side by side, with their boundaries."""
    text, boundaries = "", []
    for sentence in sentences:
        boundaries.append([len(text), len(text) + len(sentence)])
        text += sentence + " "
    return {
        "docid": ENTITY + name,
        "title": name,
        "uri": ENTITY + name,
        "text": text,
        "sentences_boundaries": boundaries,
        "words_boundaries": [],
        "entities": [],
        "triples": triples,
    }


def fact(relation: str, subject: str, sub_label: str, answer: str, obj_label: str) -> dict:
    """A row of LAMA."""
    return {
        "uuid": f"uuid-{subject}",
        "obj_uri": answer,
        "obj_label": obj_label,
        "sub_uri": subject,
        "sub_label": sub_label,
        "predicate_id": relation,
        "evidences": [{"sub_surface": sub_label, "obj_surface": obj_label, "masked_sentence": "… [MASK] …"}],
    }


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two T-REx files with three documents, and LAMA's folder with two relations."""
    trex, lama = tmp_path / "TREx_json", tmp_path / "TREx"
    trex.mkdir()
    lama.mkdir()
    first = [
        document(
            "Q937",
            ["Albert Einstein was born\n in Ulm.", "He died in Princeton.", "He liked the violin."],
            [
                triple(0, "P19", "Q937", ENTITY + "Q3012"),
                triple(0, "P569", "Q937", DATE),
                triple(1, "P20", "Q937", ENTITY + "Q138518"),
                triple(2, "P1303", "Q937", ENTITY + "Q8355"),
            ],
        )
    ]
    second = [
        document("Q3012", ["Ulm is the birthplace of Albert Einstein."], [triple(0, "P19", "Q937", ENTITY + "Q3012")]),
        document("Q1", ["Einstein died at Princeton."], [triple(0, "P20", "Q937", ENTITY + "Q138518")]),
        document("Q2", ["Einstein died at Princeton."], [triple(0, "P19", "Q937", ENTITY + "Q3012")]),
    ]
    for name, documents in (("re-nlg_0-10000.json", first), ("re-nlg_10000-20000.json", second)):
        (trex / name).write_text(json.dumps(documents), encoding="utf-8")
    rows = {
        "P19": [
            fact("P19", "Q937", "Albert Einstein", "Q3012", "Ulm"),
            fact("P19", "Q42", "D. Adams", "Q350", "Cambridge"),
        ],
        "P20": [fact("P20", "Q937", "Albert Einstein", "Q138518", "Princeton")],
    }
    for name, facts in rows.items():
        text = "".join(json.dumps(one) + "\n" for one in [*facts, facts[0]])
        (lama / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {"sentences": str(trex), "facts": str(lama)}


def test_sentences_that_state_a_fact_and_the_questions_about_it(files):
    corpus = TREx(**files).load()
    assert {record.id: record.text for record in corpus.train} == {
        "Q937-0": "Albert Einstein was born in Ulm.",
        "Q937-1": "He died in Princeton.",
        "Q3012-0": "Ulm is the birthplace of Albert Einstein.",
        "Q1-0": "Einstein died at Princeton.",  # Q2's is the same text, and adds its fact
    }
    born, died = corpus.queries["facts"]  # nobody says where D. Adams was born
    assert (born.prompt, born.completion) == ("In which place was Albert Einstein born?", " Ulm")
    assert born.truth == ("Q937-0", "Q3012-0", "Q1-0") and died.truth == ("Q937-1", "Q1-0")
    assert born.meta["answer"] == "Ulm" and not corpus.finetune
    assert corpus.train == TREx(**files).train_records()


def test_every_relation_of_lama_has_a_question():
    assert len(QUESTIONS) == len(set(QUESTIONS.values())) == 41
    assert all(text.count(SUBJECT) == 1 and text.endswith("?") for text in QUESTIONS.values())


def test_own_questions_and_a_relation_without_one(files, tmp_path):
    own = tmp_path / "questions.jsonl"
    own.write_text('{"relation": "P19", "question": "Birthplace of [X]?"}\n')
    with pytest.raises(UserError, match="no question for relation P20"):
        TREx(**files, questions=str(own)).load()
    own.write_text('{"relation": "P19", "question": "[X]: born?"}\n{"relation": "P20", "question": "[X]: died?"}\n')
    prompts = [record.prompt for record in TREx(**files, questions=str(own)).load().queries["facts"]]
    assert prompts == ["Albert Einstein: born?", "Albert Einstein: died?"]
    own.write_text('{"relation": "P19", "question": "born?"}\n')
    with pytest.raises(UserError, match=r"P19 has no \[X\]"):
        TREx(**files, questions=str(own)).load()


def test_sentences_are_limited(files):
    short = TREx(**files, limit=2).load()
    assert [record.id for record in short.train] == ["Q937-0", "Q937-1"]
    assert [record.truth for record in short.queries["facts"]] == [("Q937-0",), ("Q937-1",)]


def test_the_second_stage_comes_from_a_file(files, tmp_path):
    path = tmp_path / "xp3.jsonl"
    path.write_text('{"prompt": "Two and two?", "completion": "four"}\n{"prompt": "Sky?", "completion": " blue"}\n')
    records = TREx(**files, finetune_path=str(path)).load().finetune
    assert [(record.id, record.prompt, record.completion) for record in records] == [
        ("ft-0", "Two and two?", " four"),
        ("ft-1", "Sky?", " blue"),
    ]
    assert len(TREx(**files, finetune_path=str(path), finetune_limit=1).finetune_records()) == 1


def test_the_hub_s_tables(monkeypatch):
    parts = {
        "abstracts": [
            {
                "inputs_pretokenized": "<extra_id_0> is the birthplace of Einstein.",
                "targets_pretokenized": "<extra_id_0> Ulm",
                "facts": "P19,Q937,Q3012;P31,Q3012,Q515",
                "id": 7,
            },
            {
                "inputs_pretokenized": "Ulm is the birthplace of <extra_id_0>.",
                "targets_pretokenized": "<extra_id_0> Einstein",
                "facts": "P19,Q937,Q3012",
                "id": 8,
            },
        ],
        "queries": [
            {
                "predicate_id": "P19",
                "sub_uri": "Q937",
                "obj_uri": "Q3012",
                "sub_surface": "Einstein",
                "obj_surface": "Ulm",
            }
        ],
    }
    asked = []

    def load_dataset(name, part, *, split, revision):
        asked.append((name, split, revision))
        return parts[part]

    fake = types.SimpleNamespace(
        load_dataset=load_dataset,
        exceptions=types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    corpus = TREx(hub="ekinakyurek/ftrace").load()
    assert [(record.id, record.text) for record in corpus.train] == [("7", "Ulm is the birthplace of Einstein.")]
    assert corpus.queries["facts"][0].truth == ("7",)
    assert set(asked) == {("ekinakyurek/ftrace", "train", "refs/convert/parquet")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentences": None}, "give dataset.sentences=FOLDER and"),
        ({"hub": "a/b"}, "or dataset.hub="),
        ({"query_limit": 0}, "dataset.query_limit=0: must be at least 1"),
    ],
)
def test_bad_keys(files, change, message):
    with pytest.raises(UserError, match=message):
        TREx(**{**files, **change})


def test_bad_files(files, tmp_path):
    with pytest.raises(UserError, match=r"dataset\.sentences=.*nowhere: no such file"):
        TREx(sentences=str(tmp_path / "nowhere"), facts=files["facts"]).load()
    broken = tmp_path / "broken.json"
    broken.write_text('[{"docid": "x", "triples": [{}]}]')
    with pytest.raises(UserError, match=r"broken\.json, document 1: not in T-REx's format \(no key 'predicate'\)"):
        TREx(sentences=str(broken), facts=files["facts"]).load()
    for text, words in (
        ("[\n{", r"not in T-REx's format \(not valid JSON \(.*line 2 column"),
        ('[{"docid": 3, "triples": 4}]', "document 1"),
    ):
        broken.write_text(text)
        with pytest.raises(UserError, match=words) as told:
            TREx(sentences=str(broken), facts=files["facts"]).load()
        assert not re.search(r"\w+Error|object|NoneType", str(told.value))
    only = tmp_path / "only.jsonl"
    only.write_text(json.dumps(fact("P19", "Q1", "a", "Q2", "b")) + "\n")
    with pytest.raises(UserError, match="no sentence states any of the facts"):
        TREx(sentences=files["sentences"], facts=str(only)).load()
