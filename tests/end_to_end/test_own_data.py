"""Anybody's data in one command: dialogues, questions without truth, compared answers, pieces, sources, bad rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, only

from tdaexp import influence
from tdaexp.metrics.belonging import by_document

OWN = [*(text for text in TINY if not text.startswith("dataset.")), "method=dot", "metric.plots=false"]
DATA = ("dataset=text", "dataset.path=chat.jsonl", "dataset.query_path=questions.jsonl")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS = [
    {
        "messages": [turn("user", f"Where does river {k} run?"), turn("assistant", f"past town {k % 5}")],
        "source": ("maps", "tales")[k % 2],
    }
    for k in range(12)
]
QUESTIONS = [{"prompt": f"The way of river {k}?", "completion": f"by town {k % 5}"} for k in range(3)]


def lines(name: str, rows: list) -> None:
    Path(name).write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(commands) -> None:
    lines("chat.jsonl", ROWS)
    lines("questions.jsonl", QUESTIONS)


def beside(name: str) -> Path:
    return only(f"outputs/attribute/*/{name}")


def store():
    return influence.load(beside("influence.zarr"))


def test_dialogues_and_questions_with_these_keys_alone(commands, files):
    told = commands.done("attribute", *DATA, *OWN)
    assert "chat.jsonl: dialogues in 'messages', sources in 'source'" in told
    assert "questions.jsonl: prompts in 'prompt', completions in 'completion'" in told
    assert "all 12 training examples for each of 3 questions (36 pairs)" in told
    found = store()
    assert found["influence"].shape[:2] == (3, 12) and set(found["query_set"].values) == {"questions"}
    assert not found["truth"].any() and not influence.truth_known(found).any()
    assert not any("accuracy" in key for key in json.loads(beside("metrics.json").read_text()))
    table = pd.read_csv(beside("sources.csv"))
    scores = influence.dense(found)
    assert table["count"].tolist() == [6] * 6
    own = scores.sel(query="1/questions", train=[str(k) for k in range(0, 12, 2)]).sum()
    row = table[(table["query"] == "1/questions") & (table["source"] == "maps")]
    np.testing.assert_allclose(row["sum"].item(), own, rtol=1e-6)


def test_a_compared_answer_is_the_difference_of_two_questions(commands, files):
    both = {"prompt": "The way of river 0?", "chosen": "by town 0", "rejected": "through the hills of town 3"}
    alone = [{"prompt": both["prompt"], "chosen": both[key]} for key in ("chosen", "rejected")]
    lines("questions.jsonl", [both, *alone])
    commands.done("attribute", *DATA, *OWN, "trainer.precision=float64")
    one, chosen, rejected = influence.dense(store()).values
    np.testing.assert_allclose(one, chosen - rejected, atol=1e-8 * np.abs(chosen).max())
    asked = [json.loads(line) for line in beside("top.jsonl").read_text(encoding="utf-8").splitlines()]
    assert asked[0]["completion"] == both["chosen"] and asked[0]["rejected"] == both["rejected"]
    assert "rejected" not in asked[1]
    assert f"(rather than: {both['rejected']})" in beside("report.html").read_text(encoding="utf-8")


def test_pieces_of_long_rows_add_up_to_documents(commands, files):
    texts = [f"river {k} runs past town {k % 5}. " * (1 + 3 * k) for k in range(4)]
    lines("chat.jsonl", [{"id": f"d{k}", "text": text} for k, text in enumerate(texts)])
    commands.done("attribute", *DATA, *OWN, "dataset.chunk=24")
    found = store()
    documents = by_document(found)
    assert found.sizes["candidate"] > 4 == documents.sizes["candidate"]
    assert set(found["document"].values) == set(documents["train"].values[0]) == {"d0", "d1", "d2", "d3"}
    np.testing.assert_allclose(
        np.nansum(influence.scores(documents).values, 1), np.nansum(influence.scores(found).values, 1)
    )


def test_rows_that_cannot_be_read_are_named_or_left_out(commands, files):
    no_answer = {"messages": ROWS[0]["messages"][:1]}
    lines("chat.jsonl", [*ROWS[:3], "{broken\n", *ROWS[3:], no_answer])
    err = commands.refused("attribute", *DATA, *OWN)
    assert "chat.jsonl: 2 of 14 rows cannot be read: row 4: not valid JSON" in err
    assert "row 14: column 'messages': no turn of the assistant" in err and "dataset.skip_bad=true" in err
    commands.done("attribute", *DATA, *OWN, "dataset.skip_bad=true")
    skipped = pd.read_csv(beside("skipped.csv"))
    assert skipped[["file", "row"]].values.tolist() == [["chat.jsonl", 4], ["chat.jsonl", 14]]
    assert sorted(set(influence.dense(store())["train"].values), key=int) == [str(k) for k in range(13) if k != 3]
