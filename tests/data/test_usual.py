"""Columns are found by their usual names, in files of every kind, and said; named ones win."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tdaexp.data.records import Place, Record
from tdaexp.data.text import Text
from tdaexp.runtime.errors import UserError


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(path: str, **keys) -> Record:
    (record,) = Text(path=path, query_sets=[], **keys).load().train
    return record


DIALOGUE = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Riga."}]
FORMS = {
    "messages": ({"messages": DIALOGUE, "prompt": "Where?"}, "Where?", "Riga."),
    "share-gpt": (
        {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Riga."}]},
        "Where?",
        "Riga.",
    ),
    "texts in turns": ({"conversations": ["Where?", "Riga."]}, "Where?", "Riga."),
    "prompt and completion": ({"prompt": "Where?", "completion": "Riga."}, "Where?", "Riga."),
    "instruction": ({"instruction": "Name it.", "input": "Latvia", "output": "Riga."}, "Name it.\nLatvia", "Riga."),
    "instruction alone": ({"instruction": "Name it.", "input": "", "output": "Riga."}, "Name it.", "Riga."),
    "response": ({"instruction": "Name it.", "response": "Riga.", "context": "Latvia"}, "Name it.\nLatvia", "Riga."),
    "question": ({"Question": "Where?", "Answer": "Riga."}, "Where?", "Riga."),
    "input and output": ({"input": "Where?", "output": "Riga."}, "Where?", "Riga."),
    "text": ({"text": "Riga is old.", "label": 1}, "", "Riga is old."),
    "a pair before a text": ({"text": "x", "prompt": "Where?", "completion": "Riga."}, "Where?", "Riga."),
    "a completion alone": ({"completion": "Riga."}, "", "Riga."),
    "messages as a prompt": ({"prompt": DIALOGUE[:1], "completion": DIALOGUE[1:]}, "Where?", "Riga."),
}


@pytest.mark.parametrize("name", FORMS)
def test_usual_forms(tmp_path, name: str) -> None:
    row, prompt, completion = FORMS[name]
    path = jsonl(tmp_path / "a.jsonl", [row])
    assert only(path) == Record("0", prompt, completion)
    assert only(path).where == Place(path, 1)


def test_what_was_found_is_said_in_one_line(tmp_path, caplog) -> None:
    rows = [{"uid": "a", "instruction": "Do.", "input": "x", "output": "y", "source": "wiki", "date": 1}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.INFO):
        record = only(path)
    assert (record.id, record.meta) == ("a", {"source": "wiki"})
    assert caplog.messages == [
        f"{path}: prompts in 'instruction' and 'input', completions in 'output', ids in 'uid', sources in 'source', "
        "not read: 'date'"
    ]


def test_sources_are_texts_and_whole_numbers(tmp_path) -> None:
    sources = ["wiki", 2020.0, 2021, None, " ", "0.50"]
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "source": one} for one in sources])
    found = [record.meta.get("source") for record in Text(path=path, query_sets=[]).load().train]
    assert found == ["wiki", "2020", "2021", None, None, "0.50"]
    for wrong, told in ((0.5, "the number 0.5"), (True, "the boolean true"), (float("nan"), "the number nan")):
        path = jsonl(tmp_path / "b.jsonl", [{"text": "x", "source": "wiki"}, {"text": "y", "source": wrong}])
        with pytest.raises(UserError, match=rf"b\.jsonl, row 2: column 'source' holds {told}, which names nothing"):
            Text(path=path, query_sets=[]).load()


def test_a_source_that_is_an_object_is_no_source_unless_it_is_named(tmp_path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x", "source": {"url": "u"}}])
    assert only(path).meta == {}
    with pytest.raises(UserError, match=r"row 1: column 'source' holds an object"):
        only(path, source_column="source")


def test_named_columns_win(tmp_path) -> None:
    row = {"id": "x", "name": "n", "prompt": "p", "completion": "c", "text": "t", "messages": DIALOGUE, "mine": "m"}
    path = jsonl(tmp_path / "a.jsonl", [row])
    assert only(path, text_column="mine") == Record("x", "", "m")
    assert only(path, completion_column="mine") == Record("x", "", "m")
    assert only(path, completion_column="mine", prompt_column="text", id_column="name") == Record("n", "t", "m")
    assert only(path, prompt_column="text") == Record("x", "t", "c")
    assert only(path, messages_column="messages", id_column="row") == Record("0", "Where?", "Riga.")
    with pytest.raises(UserError, match=r"a\.jsonl, row 1: unknown column 'mines'; did you mean 'mine'"):
        only(path, text_column="mines")


def test_a_file_without_usual_names_says_what_to_name_and_what_is_nested(tmp_path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"data": {"prompt": "p", "completion": "c"}, "n": 1}])
    with pytest.raises(
        UserError, match=r"columns \(data, n\) has a usual name.*nested.*data\.prompt, data\.completion"
    ):
        only(path)
    with pytest.raises(UserError, match=r"row 1: column 'data' holds an object, which is no text"):
        only(path, text_column="data")


def test_questions_have_a_form_of_their_own_and_the_name_of_their_file(tmp_path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [{"messages": DIALOGUE}])
    asked = jsonl(tmp_path / "bad answers.jsonl", [{"id": "q", "prompt": "Where?", "completion": "Oslo."}])
    data = Text(path=train, query_path=asked)
    assert data.query_sets == ["bad answers"]
    assert data.load().queries == {"bad answers": [Record("q/bad answers", "Where?", "Oslo.")]}
    named = Text(path=train, query_path=asked, messages_column="messages")  # which the questions do not have
    assert named.load().queries["bad answers"][0].completion == "Oslo."


def test_the_older_name_of_the_questions_stays_valid(tmp_path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"text": "x"}])
    for sets in (["paraphrased"], ["paraphrased", "generated"]):
        data = Text(path=path, query_path=path, query_sets=sets)
        assert data.generated_from == "paraphrased"
        assert [query.id for query in data.load().queries["paraphrased"]] == ["0/paraphrased"]
    assert Text(path=path, query_path=path, query_sets=["generated"]).generated_from == "q"
    with pytest.raises(UserError, match="'q' and 'paraphrased' are both the questions"):
        Text(path=path, query_path=path, query_sets=["q", "paraphrased"])
    with pytest.raises(UserError, match="unknown query set 'questions'; choices: generated, paraphrased, q"):
        Text(path=path, query_path=path, query_sets=["questions"])


def test_a_file_called_like_the_models_own_set_keeps_its_ending(tmp_path) -> None:
    path = jsonl(tmp_path / "generated.jsonl", [{"text": "x"}])
    assert list(Text(path=path, query_path=path).load().queries) == ["generated.jsonl"]


@pytest.mark.parametrize("named", [{}, {"query_sets": ["paraphrased"]}])
def test_a_file_may_be_called_by_the_other_name_of_its_set(tmp_path, named) -> None:
    path = jsonl(tmp_path / "paraphrased.jsonl", [{"text": "x"}])
    assert list(Text(path=path, query_path=path, **named).load().queries) == ["paraphrased"]


def test_questions_without_answers_are_for_the_model(tmp_path) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"text": "x"}])
    asked = jsonl(tmp_path / "q.jsonl", [{"prompt": "Where?"}])
    with pytest.raises(
        UserError, match=r"q\.jsonl: has questions \('prompt'\) and no answers.*query_sets=\[generated\]"
    ):
        Text(path=train, query_path=asked).load()
    queries = Text(path=train, query_path=asked, query_sets=["generated"]).load().queries
    assert [query.prompt for query in queries["q"]] == ["Where?"]
    with pytest.raises(UserError, match=r"q\.jsonl: none of its columns"):
        Text(path=asked, query_sets=[]).load()


REJECTED = {
    "texts": {"prompt": "Where?", "chosen": "Riga.", "rejected": "Oslo."},
    "a completion": {"prompt": "Where?", "completion": "Riga.", "rejected": "Oslo."},
    "messages": {"messages": DIALOGUE, "rejected": "Oslo."},
    "whole dialogues": {
        "prompt": "Where?",
        "chosen": DIALOGUE,
        "rejected": [DIALOGUE[0], {"role": "assistant", "content": "Oslo."}],
    },
    "answers as messages": {
        "prompt": DIALOGUE[:1],
        "chosen": DIALOGUE[1:],
        "rejected": [{"role": "assistant", "content": "Oslo."}],
    },
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_answers(tmp_path, name: str) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"text": "x"}])
    (query,) = Text(path=train, query_path=jsonl(tmp_path / "q.jsonl", [REJECTED[name]])).load().queries["q"]
    assert (query.prompt, query.completion, query.said) == ("Where?", "Riga.", ())
    assert query.rejected is not None
    assert (query.rejected.prompt, query.rejected.completion, query.rejected.said) == ("Where?", "Oslo.", ())


def test_a_question_may_have_no_rejected_answer_but_not_the_same(tmp_path) -> None:
    train = jsonl(tmp_path / "t.jsonl", [{"text": "x"}])
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": None}]
    found = Text(path=train, query_path=jsonl(tmp_path / "q.jsonl", rows)).load().queries["q"]
    assert [query.rejected is None for query in found] == [False, True]
    same = jsonl(tmp_path / "s.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    with pytest.raises(UserError, match=r"s\.jsonl, row 1: its rejected answer is the chosen one"):
        Text(path=train, query_path=same).load()
    with pytest.raises(UserError, match=r"dataset\.rejected_column: is a column of dataset\.query_path"):
        Text(path=train, rejected_column="r")
    with pytest.raises(UserError, match=r"s\.jsonl, row 1: unknown column 'rejectd'; did you mean 'rejected'"):
        Text(path=train, query_path=same, rejected_column="rejectd").load()
    other = jsonl(tmp_path / "o.jsonl", [{"prompt": "a", "chosen": "b"}, {"prompt": "a", "chosen": "b", "worse": "c"}])
    found = Text(path=train, query_path=other, rejected_column="worse").load().queries["o"]
    assert [query.rejected is None for query in found] == [True, False]
