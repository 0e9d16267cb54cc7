"""Rows that were cut into pieces: what an answer says of them as wholes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, only

from tdaexp import influence

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
    data = ["dataset=text", "dataset.path=./train.jsonl", "dataset.query_path=asked.jsonl", "dataset.chunk=20"]
    commands.done("attribute", *CONTROLS, *data, "metric.plots=false", "method=dot", "self_influence=true")
    return only("outputs/attribute/*dot*")


@pytest.mark.long
def test_pieces_have_no_self_influence_of_their_row(commands, asked):
    refused = commands.refused("evaluate", f"runs=[{asked}]", "drop=2", "drop_by=self")
    assert "has the self-influence of pieces (e.g. 'd1#1'), whose sum is not that of the whole row" in refused
    commands.done("evaluate", f"runs=[{asked}]", "drop=1", "drop_by=helpful")
    left = only("outputs/evaluate/*/train-kept.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(left) == 5 and {json.dumps(row) for row in TRAIN} > set(left)


def test_a_change_at_the_end_of_a_long_row_is_found(commands, asked):
    write("train.jsonl", [*TRAIN[:-1], {**TRAIN[-1], "text": TRAIN[-1]["text"][:-2] + "?"}])
    refused = commands.refused("evaluate", f"runs=[{asked}]", "drop=2", "drop_by=helpful")
    assert "its training data changed since (e.g. row 'd5')" in refused


def test_rows_and_sources_are_of_whole_rows_and_the_best_of_pieces(asked):
    dense = influence.dense(influence.load(asked / "influence.zarr")).to_pandas()
    wholes = dense.T.groupby(lambda name: name.partition("#")[0]).sum().T
    assert len(wholes.columns) == 6 < len(dense.columns)
    rows = pd.read_csv(asked / "rows.csv").set_index("row")
    assert rows.index.tolist() == [row["id"] for row in TRAIN] and rows["queries"].tolist() == [2] * 6
    np.testing.assert_allclose(rows["mean"], wholes.mean(), rtol=1e-5)
    np.testing.assert_allclose(rows["highest"], wholes.max(), rtol=1e-5)
    assert rows["text"].tolist() == [row["text"].strip() for row in TRAIN]
    assert rows["self_influence"].notna().tolist() == [True, *[False] * 5]  # that of pieces is not their row's

    sources = pd.read_csv(asked / "sources.csv").set_index(["query", "source"])
    assert sources["count"].tolist() == [3] * 4
    for query, scores in wholes.iterrows():
        for source, names in (("a", ["d0", "d2", "d4"]), ("b", ["d1", "d3", "d5"])):
            found = sources.loc[(query, source)]
            np.testing.assert_allclose((found["sum"], found["mean"]), (scores[names].sum(), scores[names].mean()), 1e-5)

    top = pd.read_csv(asked / "top.csv")
    assert (top["row"].str.partition("#")[0] == top["document"]).all() and top["row"].str.contains("#").any()
    for line in (asked / "top.jsonl").read_text(encoding="utf-8").splitlines():
        for entry in json.loads(line)["helpful"]:
            assert entry["document"] == entry["row"].partition("#")[0]


def test_self_influence_of_pieces_needs_no_question(commands):
    write("train.jsonl", TRAIN)
    data = ["dataset=text", "dataset.path=train.jsonl", "dataset.query_sets=[]", "dataset.chunk=20"]
    commands.done("attribute", *CONTROLS, *data, "metric.plots=false", "method=dot", "self_influence=true")
    suspects = pd.read_csv(only("outputs/attribute/*dot*/suspects.csv"))
    assert "d0" in set(suspects["row"]) and "d5#2" in set(suspects["row"])
