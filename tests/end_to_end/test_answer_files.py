"""An answer to act on, from the command to the files, and to a training file without the rows that did harm."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, only

from tdaexp import influence

CONTROLS = [text for text in TINY if not text.startswith(("dataset.", "candidates"))]


@pytest.fixture
def asked(commands) -> list[str]:
    """Keys of 30 training rows and 4 questions without truth, in the working folder."""
    train = [
        {"prompt": f"Where does river {k} run?", "completion": f"[b]past town {k % 7}[/b], =1+{k}"} for k in range(30)
    ]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, train)) + "\n", encoding="utf-8")
    questions = [
        {"prompt": f"Where does river {7 * k} run and is town {k}?", "completion": f"by river {k}"} for k in range(4)
    ]  # words that make BM25 order the rows differently for each
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n", encoding="utf-8")
    data = ["dataset=text", "dataset.path=train.jsonl", "dataset.query_path=asked.jsonl", "candidates=all"]
    return [*CONTROLS, *data, "metric.plots=false", "method=dot"]


@pytest.mark.long
def test_files_console_and_a_training_file_without_harm(commands, asked, capfd):
    commands.done("attribute", *asked)
    folder = only("outputs/attribute/*dot*")
    dense = influence.dense(influence.load(folder / "influence.zarr")).to_pandas()
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    checks = json.loads((folder / "trust.json").read_text(encoding="utf-8"))["checks"]
    assert {f"trust/{one['name']}": one["value"] for one in checks if one["verdict"] != "absent"} | {
        "trust/bad": 0.0
    } == {key: value for key, value in metrics.items() if key.startswith("trust/")}
    assert 'id="trust"' in (folder / "report.html").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (folder / "top.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["prompt"], one["completion"]) for one in lines] == [
        (f"Where does river {7 * k} run and is town {k}?", f"by river {k}") for k in range(4)
    ]
    for one, (_, scores) in zip(lines, dense.iterrows(), strict=True):
        for side, wanted in (("helpful", scores.nlargest(5)), ("harmful", scores.nsmallest(5))):
            assert [(row["row"], row["score"]) for row in one[side]] == list(wanted.items())
            assert one[side][0]["prompt"] == f"Where does river {one[side][0]['row']} run?"
    with (folder / "top.csv").open(encoding="utf-8", newline="") as stream:
        top = list(csv.DictReader(stream))
    assert len(top) == sum(len(one["helpful"]) + len(one["harmful"]) for one in lines)
    with (folder / "rows.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["row"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [str(k) for k in range(30)]
    means = dense.mean()
    np.testing.assert_allclose([float(rows[row]["mean"]) for row in means.index], means, rtol=1e-6)

    commands.done("evaluate", f"runs=[{folder}]", "drop=0.1", "logger=none")
    left = only("outputs/evaluate/*")
    gone = json.loads((left / "drop.json").read_text(encoding="utf-8"))
    assert gone["rows"] == means[means < 0].nsmallest(3).index.tolist() and gone["of"] == 30
    before = Path("train.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for k, line in enumerate(before) if str(k) not in gone["rows"]]
    assert (left / "train-kept.jsonl").read_text(encoding="utf-8").splitlines() == kept
    with (left / "dropped.csv").open(encoding="utf-8", newline="") as stream:
        told = list(csv.DictReader(stream))
    assert [row["line"] for row in told] == [str(int(row) + 1) for row in gone["rows"]]

    refused = commands.refused("evaluate", f"runs=[{folder}]", "drop=3", "drop_by=self", "logger=none")
    assert "has no self-influence" in refused and "self_influence=true" in refused
    Path("train.jsonl").write_text("\n".join(reversed(before)), encoding="utf-8")
    assert "its training data changed since" in commands.refused(
        "evaluate", f"runs=[{folder}]", "drop=2", "logger=none"
    )


def test_what_moves_in_the_shorter_file_is_said(commands, asked):
    rows = [json.loads(line) for line in Path("asked.jsonl").read_text(encoding="utf-8").splitlines()]
    Path("asked.jsonl").write_text("".join(json.dumps({**row, "of": 3}) + "\n" for row in rows), encoding="utf-8")
    part = ["dataset.limit=24", "dataset.held_out=4", "dataset.truth_column=of", "self_influence=true"]
    commands.done("attribute", *asked, *part)
    told = commands.done("evaluate", f"runs=[{only('outputs/attribute/*dot*')}]", "drop=2", "drop_by=self")
    assert "dropped 2 of 20 training rows" in told and "train with dataset.limit=22" in told
    assert "dataset.held_out=4: is drawn anew" in told
    assert "dataset.truth_column=of: rows that go by their number have another one" in told


@pytest.mark.long
def test_four_questions_as_one(commands, asked):
    commands.done("attribute", *asked)
    commands.done("attribute", *asked, "dataset.combine=mean")
    one, each = (
        next(store for store in stores if store.sizes["query"] == size)
        for stores in [[influence.load(file) for file in Path("outputs").rglob("influence.zarr")]]
        for size in (1, 4)
    )
    assert len({tuple(row) for row in each["train"].values}) == 4
    np.testing.assert_allclose(
        influence.dense(one).values[0], influence.dense(each).mean("query"), rtol=1e-5, atol=1e-7
    )
    refused = commands.refused("attribute", *asked, "method=full", "dataset.combine=mean")
    assert "method=full is not linear in the query" in refused
