"""An index by command: built, asked, shared out, damaged, killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, metrics, only, rows

from tdaexp import influence
from tdaexp.index import index as index_module

SIDE = (*TINY, "method=project", "method.side=4", "metric.plots=false", "trust=false")
BEST = (*SIDE, "candidates=best", "candidates.k=4")
PARAPHRASED = ("dataset.query_sets=[paraphrased]", "hydra.run.dir=first")
KILLED = ("trainer.tokens_per_batch=128", "dataset.people=24", "dataset.query_sets=[paraphrased]")
PATIENCE_S = 300


@pytest.fixture
def blocks_of_5(monkeypatch):
    """Several blocks of a few texts."""
    monkeypatch.setattr(index_module, "DOCUMENTS", 5)


def files(folder: Path) -> dict[str, bytes]:
    """The rows of an index."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("index/[!.]*/*.npy")}


@pytest.mark.long
def test_the_best_of_all_and_a_second_question_without_a_pass(commands, blocks_of_5, tmp_path):
    own = f"cache_dir={tmp_path}/own"
    said = commands.done("attribute", *BEST, *PARAPHRASED, own)
    assert "blocks are to be built" in said
    commands.done("attribute", *SIDE, "candidates=all", own, "dataset.query_sets=[paraphrased]", "hydra.run.dir=dense")
    found, dense = (influence.load(Path(name) / "influence.zarr") for name in ("first", "dense"))
    assert found.sizes["candidate"] == 8 and found.sizes["component"] == dense.sizes["component"]
    theirs, scores = dense["train"].values, influence.scores(dense).values
    for row, mine in enumerate(influence.scores(found).values):
        of = dict(zip(theirs[row], scores[row], strict=True))
        np.testing.assert_allclose(mine, [of[name] for name in found["train"].values[row]], atol=1e-5)
        np.testing.assert_allclose(mine, np.sort(scores[row])[::-1][[0, 1, 2, 3, -4, -3, -2, -1]], atol=1e-5)
    ours, whole = metrics(Path("first")), metrics(Path("dense"))
    for name in ("accuracy", "random_accuracy", "queries"):
        assert ours[f"paraphrased/{name}"] == whole[f"paraphrased/{name}"]
    first = json.loads(Path("first/top.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["helpful"] and first["harmful"]
    again = ("method=dot", own, "dataset.query_sets=[paraphrased]", "metric.plots=false", "trust=false")
    commands.done("attribute", *TINY, *again, "candidates=found", "candidates.run=first", "hydra.run.dir=second")
    commands.done("attribute", *TINY, *again, "candidates=all", "hydra.run.dir=dots")
    dots, second = (influence.load(Path(name) / "influence.zarr") for name in ("dots", "second"))
    assert second["train"].values.tolist() == found["train"].values.tolist()
    np.testing.assert_array_equal(second["truth"].values, found["truth"].values)
    theirs, scores = dots["train"].values, influence.scores(dots).values
    for row, mine in enumerate(influence.scores(second).values):
        of = dict(zip(theirs[row], scores[row], strict=True))
        np.testing.assert_allclose(mine, [of[name] for name in found["train"].values[row]], rtol=1e-4, atol=1e-7)
    said = commands.done("attribute", *BEST, own, PARAPHRASED[0], "candidates.search=flat", "hydra.run.dir=flat")
    assert (
        "Flat by faiss of" in said and "recall 100.0 % of the 4 most helpful and 100.0 % of the 4 most harmful" in said
    )
    by_faiss = influence.load(Path("flat/influence.zarr"))
    assert by_faiss["train"].values.tolist() == found["train"].values.tolist()
    assert (
        by_faiss.attrs["search"] == "Flat, 20 rows a side scored again"
        and metrics(Path("flat"))["trust/search_recall"] == 1
    )
    said = commands.done("attribute", *BEST, own, "dataset.query_sets=[generated]")
    assert "blocks are there" in said and "no pass over them" in said and "to be built" not in said


@pytest.mark.long
def test_shares_of_a_sweep_and_a_damaged_block(commands, blocks_of_5, tmp_path):
    own = f"cache_dir={tmp_path}/own"
    commands.done("attribute", *BEST, "dataset.query_sets=[]", "-m", "shard=3/3,1/3,2/3", own, "hydra.sweep.dir=shares")
    table = rows(Path("shares"))
    count = float(table[0]["index/blocks"])
    assert count > 3 and sum(float(row["index/built"]) for row in table) == count
    assert float(table[-1]["index/there"]) == count and {row["status"] for row in table} == {"done"}
    again = ("-m", "shard=3/3,1/3,2/3", own, "hydra.sweep.dir=shares", "resume=true", "dataset.query_sets=[]")
    assert commands.done("attribute", *BEST, *again).count("finished before, skipped") == 3
    expected = files(tmp_path / "own")
    assert "0 of them are damaged" in commands.done("evaluate", own, "cache=verify")
    victim = sorted((tmp_path / "own").glob("index/[!.]*/rows.npy"))[1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    said = commands.done("evaluate", own, "cache=verify")
    assert f"{victim.parent}: damaged (rows.npy: its checksum is wrong)" in said and "1 of them are damaged" in said
    said = commands.done("attribute", *BEST, *PARAPHRASED, own)
    assert "a damaged block of an index (rows.npy: its checksum is wrong)" in said and f"1 of {count:g} blocks" in said
    assert files(tmp_path / "own") == expected


@pytest.mark.long
def test_a_classifier(commands):
    task = (
        *("model=logistic", "dataset=digits", "dataset.train=60", "dataset.test=40", "dataset.query_limit=10"),
        *("trainer.fit.steps=2", "metric.plots=false", "metric.bootstrap=10", "method=project", "method.side=4"),
    )
    commands.done("attribute", *task, "candidates=best", "candidates.k=5", "hydra.run.dir=found")
    commands.done("attribute", *task, "candidates=all", "hydra.run.dir=dense")
    found, dense = (metrics(Path(name)) for name in ("found", "dense"))
    same = [name for name in found if name.endswith(("/accuracy", "/recall@5", "/random_accuracy"))]
    assert len(same) == 3 and all(found[name] == dense[name] for name in same)
    line = commands.refused("attribute", *task[:-1], "candidates=found", "candidates.run=found")
    assert "candidates=found: reads texts; of a classification task choose candidates=all" in line


def test_searches_that_are_refused_before_a_block_is_built(commands):
    line = commands.refused("attribute", *BEST, "candidates.search=ivf", "candidates.lists=4")
    assert "candidates.search=ivf: 4 centroids are fitted to at least 156 rows, and there are 20" in line
    trackstar = (*TINY, "method=trackstar", "candidates=best", "candidates.search=flat")
    assert "method=trackstar rows are whitened by R, in which the questions have a part" in commands.refused(
        "attribute", *trackstar
    )


def test_scores_of_another_program_are_about_pairs_that_are_named(commands, tmp_path):
    (tmp_path / "scores.json").write_text("{}", encoding="utf-8")
    line = commands.refused("evaluate", *TINY[:-1], "scores=scores.json", "candidates=best")
    assert "candidates=best: are pairs that a method finds" in line


@pytest.mark.long
def test_killed_while_an_index_is_built(commands, tmp_path):
    """SIGKILL as soon as some batches of a block are there: the same rows, and these batches are not run again."""
    commands.done("attribute", *BEST, *KILLED, f"cache_dir={tmp_path}/straight", "hydra.run.dir=straight-run")
    own = f"cache_dir={tmp_path}/killed"
    process = commands.start("attribute", *BEST, *KILLED, own, "hydra.run.dir=killed-run")
    begun = time.monotonic()
    while not list((tmp_path / "killed").glob("index/[!.]*-passes/done/c/0")):
        assert process.poll() is None and time.monotonic() - begun < PATIENCE_S
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert not files(tmp_path / "killed")
    kept = only("index/[!.]*-passes/features/c/0/0", tmp_path / "killed").stat().st_mtime_ns
    assert kept
    commands.done("attribute", *BEST, *KILLED, own, "hydra.run.dir=killed-run")
    assert files(tmp_path / "killed") == files(tmp_path / "straight")
    assert not list((tmp_path / "killed").glob("index/[!.]*-passes"))


def test_rows_of_a_run_that_found_its_pairs_are_dropped(commands, tmp_path):
    """The found rows alone are known to the run; one of them that has changed is named."""
    lines = [json.dumps({"id": f"r{number}", "text": f"the {number} birds of a feather"}) for number in range(12)]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Path("ask.jsonl").write_text(json.dumps({"text": "the 3 birds of a feather"}), encoding="utf-8")
    data = ("dataset=text", "dataset.path=rows.jsonl", "dataset.query_path=ask.jsonl")
    own = [one for one in SIDE if not one.startswith("dataset.")]
    commands.done("attribute", *own, *data, "candidates=best", "candidates.k=2", "hydra.run.dir=run")
    commands.done("evaluate", "runs=[run]", "drop=1", "drop_by=helpful", "logger=none", "hydra.run.dir=dropped")
    gone = Path("dropped/dropped.csv").read_text(encoding="utf-8").splitlines()[1].split(",")[0]
    assert gone in Path("run/rows.csv").read_text(encoding="utf-8")
    assert f'"{gone}"' not in Path("dropped/rows-kept.jsonl").read_text(encoding="utf-8")
    Path("rows.jsonl").write_text("\n".join(lines).replace("birds", "wolves"), encoding="utf-8")
    assert "its training data changed since" in commands.refused("evaluate", "runs=[run]", "drop=1", "logger=none")
