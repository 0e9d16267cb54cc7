"""Rows that were cut into pieces: what an answer says of them as wholes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import TINY, only

CONTROLS = [text for text in TINY if not text.startswith(("dataset.", "candidates"))]
TRAIN = [
    {"id": f"d{k}", "source": "ab"[k % 2], "text": f"river {k} runs past town {k % 5}. " * (1 + 3 * k)}
    for k in range(6)
]


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def asked(commands) -> Path:
    """The folder of a run about the rows above, five of them in pieces, with two questions."""
    write("train.jsonl", TRAIN)
    write("asked.jsonl", [{"text": f"where does river {k} run?"} for k in range(2)])
    data = ["dataset=text", "dataset.path=train.jsonl", "dataset.query_path=asked.jsonl", "dataset.chunk=20"]
    commands.done("attribute", *CONTROLS, *data, "metric.plots=false", "method=dot", "self_influence=true")
    return only("outputs/attribute/*dot*")


def test_pieces_have_no_self_influence_of_their_row(commands, asked):
    refused = commands.refused("evaluate", f"runs=[{asked}]", "drop=2", "drop_by=self")
    assert "has the self-influence of pieces (e.g. 'd1#1'), whose sum is not that of the whole row" in refused
    commands.done("evaluate", f"runs=[{asked}]", "drop=2", "drop_by=helpful")


def test_a_change_at_the_end_of_a_long_row_is_found(commands, asked):
    write("train.jsonl", [*TRAIN[:-1], {**TRAIN[-1], "text": TRAIN[-1]["text"][:-2] + "?"}])
    refused = commands.refused("evaluate", f"runs=[{asked}]", "drop=2", "drop_by=helpful")
    assert "its training data changed since (e.g. row 'd5')" in refused
