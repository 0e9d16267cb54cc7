"""Truth is known or it is not: without it nothing is right or wrong, and only what compares is ranked together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, metrics, only

from tdaexp import influence
from tdaexp.app import main
from tdaexp.data.text import Text
from tdaexp.metrics.comparable import sections
from tdaexp.metrics.compare import compare
from tdaexp.metrics.controls import random_accuracy
from tdaexp.metrics.judge import judge
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.report import write_report
from tdaexp.report.summary import findings
from tdaexp.report.tables import parts_of, title
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products

OWN = [text for text in TINY if not text.startswith("dataset.")]
TEXT = (
    "dataset=text", "dataset.path=rows.jsonl", "dataset.prompt_column=prompt", "dataset.completion_column=completion",
    "dataset.query_path=questions.jsonl", "dataset.query_sets=[paraphrased]", "metric.plots=false",
)  # fmt: skip
QUICK = MetricSettings(bootstrap=50, folds=3, top_k=2, plots=False)
ROWS = [
    {"prompt": f"Where does river {k} run?", "completion": f"past town {k % 5} and mill {k % 3}"} for k in range(12)
]
QUESTIONS = [{"prompt": f"The way of river {k}?", "completion": f"by town {k % 5}"} for k in range(5)]


def lines(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def store(known: list[bool] | None, rows: int = 6, candidates: int = 3, **attrs) -> influence.xr.Dataset:
    """The source of every query comes first, with the highest score for the first half of them."""
    truth = np.zeros((rows, candidates), bool)
    truth[:, 0] = True
    right = np.arange(rows) < rows // 2
    scores = np.where(truth == right[:, None], 1.0, 0.0) + np.arange(candidates) * 0.01
    if known is not None:
        truth &= np.array(known)[:, None]
    names = np.array([[f"t{k}.{c}" for c in range(candidates)] for k in range(rows)], dtype=object)
    return influence.build(
        scores,
        query=[f"q{k}" for k in range(rows)],
        query_set=["asked"] * rows,
        train=names,
        truth=truth,
        truth_known=None if known is None else np.array(known),
        attrs={"method": "dot", "label": "dot", "study": "one"} | attrs,
    )


def test_questions_of_a_file_have_no_source_unless_a_column_says_so(commands):
    """The former answer: question i comes from row i, which was forced among the candidates."""
    lines("rows.jsonl", ROWS)
    lines("questions.jsonl", [{**row, "source": [str(k)] if k < 2 else []} for k, row in enumerate(QUESTIONS)])
    commands.done("attribute", *TEXT, *OWN, "method=random", "hydra.run.dir=blind")
    blind = influence.load(Path("blind/influence.zarr"))
    assert not influence.truth_known(blind).any() and not blind["truth"].values.any()
    numbers = metrics(Path("blind"))
    assert numbers["paraphrased/queries"] == 5 and numbers["paraphrased/queries_with_truth"] == 0
    assert not [name for name in numbers if any(word in name for word in ("accuracy", "mrr", "recall", "minus"))]
    page = Path("blind/report.html").read_text(encoding="utf-8")
    assert "no query's source is known" in page.replace("&#39;", "'") and "no source known" in page
    assert 'class="badge' not in page and 'id="misses"' not in page and 'title="source"' not in page
    # ... and of two of five it is known
    commands.done("attribute", *TEXT, *OWN, "method=random", "dataset.truth_column=source", "hydra.run.dir=seen")
    seen, numbers = influence.load(Path("seen/influence.zarr")), metrics(Path("seen"))
    assert influence.truth_known(seen).tolist() == [True, True, False, False, False]
    assert numbers["paraphrased/queries_with_truth"] == 2 and numbers["paraphrased/accuracy"] in (0, 0.5, 1)
    own = [place for place in range(5) if "0" in seen["train"].values[place]]
    assert 0 in own  # a known source is among the candidates
    page = Path("seen/report.html").read_text(encoding="utf-8")
    assert page.count('class="badge') == 2 and "the source known of 2" in page


@pytest.mark.parametrize("objective", ["accuracy", "single"])
def test_select_by_accuracy_refuses_before_anything_is_computed(commands, objective):
    lines("rows.jsonl", ROWS)
    lines("questions.jsonl", QUESTIONS)
    line = commands.refused("attribute", *TEXT, *OWN, f"method.objective={objective}", "cache_dir=none")
    assert "method=select_fidelity" in line and "dataset.truth_column" in line and "'paraphrased'" in line
    left = [path.name for path in Path("none").rglob("*") if not path.name.startswith(".")]  # but for locks
    assert set(left) <= {"digests.json"}  # what was read of files, not what follows


def test_select_by_fidelity_needs_no_source(commands):
    lines("rows.jsonl", ROWS)
    lines("questions.jsonl", QUESTIONS)
    commands.done("attribute", *TEXT, *OWN, "method=select_fidelity", "budget=0.5")
    numbers = metrics(only("outputs/attribute/*"))
    assert numbers["paraphrased/fidelity"] > 0 and not [name for name in numbers if "accuracy" in name]


def test_a_column_of_truth_needs_its_file():
    with pytest.raises(UserError, match=r"dataset\.truth_column: is a column of dataset\.query_path"):
        Text(path="a.jsonl", text_column="text", truth_column="source")


def products(**changes) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "dot": rng.normal(size=(6, 3, 2)),
        "query_sq": np.ones((6, 2)),
        "train_sq": np.ones((6, 3, 2)),
        "target": np.array([0, 1, 2, 0, 1, 2]),
        "component": np.array(["a", "b"]),
        "size": np.array([4, 6]),
        "query": np.array(list("uvwxyz")),
    } | changes
    np.savez("products.npz", **{name: value for name, value in arrays.items() if value is not None})


def test_stored_products_say_what_their_queries_are(commands):
    products()
    quick = ("products=products.npz", "method=full", "metric.bootstrap=20", "metric.plots=false")
    commands.done("attribute", *quick, "query_set=generated", "hydra.run.dir=named")
    assert metrics(Path("named"))["generated/queries"] == 6
    commands.done("attribute", *quick, "hydra.run.dir=unnamed")
    assert {name.split("/")[0] for name in metrics(Path("unnamed"))} == {"queries", "trust"}
    products(query_set=np.array(["paraphrased"] * 2 + ["generated"] * 4))
    commands.done("attribute", *quick, "hydra.run.dir=file")
    found = metrics(Path("file"))
    assert found["paraphrased/queries"] == 2 and found["generated/queries"] == 4
    assert "query_set=x: names the queries of products" in commands.refused("attribute", *TINY, "query_set=x")


def test_stored_products_without_targets_have_no_truth(commands):
    products(target=None)
    quick = ("products=products.npz", "budget=0.5", "metric.bootstrap=20", "metric.plots=false")
    assert "method=select_fidelity" in commands.refused("attribute", *quick, "method=select")
    commands.done("attribute", *quick, "method=select_fidelity")
    assert not [name for name in metrics(only("outputs/attribute/*select_fid*")) if "accuracy" in name]
    products(target=np.array([0, -1, -1, 1, -1, -1]))
    assert influence.truth_known(read_products(Path("products.npz"))).tolist() == [True, False, False] * 2


def test_only_queries_with_a_known_source_count():
    """Three of four known queries are right; the two that are not known would have been misses."""
    found = judge(store([True, True, True, True, False, False]), QUICK)
    assert found["asked/queries"] == 6 and found["asked/queries_with_truth"] == 4
    assert found["asked/accuracy"] == 0.75 and found["asked/random_accuracy"] == pytest.approx(1 / 3)
    whole = store([True] * 6)
    assert judge(whole, QUICK)["asked/accuracy"] == 0.5
    # a source that is known and not among the candidates is a miss, and is part of the chance level
    lost = whole.assign(truth=whole["truth"] & (np.arange(6) > 0)[:, None])
    assert judge(lost, QUICK)["asked/accuracy"] == pytest.approx(2 / 6)
    assert random_accuracy(lost).mean() == pytest.approx(5 / 6 / 3)


def test_stores_of_earlier_versions_are_read_as_they_were():
    assert influence.truth_known(store(None)).all()
    old = store(None)
    assert not influence.truth_known(old.assign(truth=old["truth"] & False)).any()


def test_selection_looks_at_known_sources_alone():
    """What the search finds is what it finds on the known queries."""
    from tdaexp.methods.full import Full
    from tdaexp.methods.select import Select

    rng = np.random.default_rng(3)
    dot, truth = rng.normal(size=(12, 3, 4)), np.eye(3, dtype=bool)[np.arange(12) % 3]
    known = np.arange(12) < 7

    def built(rows: np.ndarray, known: np.ndarray) -> influence.xr.Dataset:
        return influence.build(
            dot[rows],
            query=[f"q{k}" for k in np.arange(12)[rows]],
            query_set=["asked"] * int(rows.sum()),
            train=np.array([["a", "b", "c"]] * int(rows.sum()), dtype=object),
            truth=truth[rows] & known[rows][:, None],
            truth_known=known[rows],
            component=list("wxyz"),
            size=np.array([1, 1, 1, 1]),
            query_sq=np.ones((int(rows.sum()), 4)),
            train_sq=np.ones((int(rows.sum()), 3, 4)),
            attrs={"method": "select", "label": "select", "study": "one"},
        )

    method = Select(on=Full(), budget=0.5)
    part, alone = (method.choose(built(rows, known)) for rows in (np.ones(12, bool), known))
    np.testing.assert_array_equal(part["order"].values, alone["order"].values)
    mine, theirs = judge(part, QUICK), judge(alone, QUICK)
    for name in ("accuracy", "heldout_accuracy", "mrr", "random_accuracy"):
        assert mine[f"asked/{name}"] == pytest.approx(theirs[f"asked/{name}"]), name


def config(**keys) -> dict:
    return {"seed": 0, "candidates": {"b": 3}, "method": {"damping": None}} | keys


def test_what_does_not_compare_is_not_ranked_together(tmp_path, capsys):
    """Two methods on the same pairs; others on more candidates, of another model, with other queries, another truth."""
    known = [True] * 6
    alike = {name: store(known, label=name, config=config()) for name in ("one", "two")}
    more = store(known, candidates=4, label="more", config=config(candidates={"b": 4}))
    seed = store(known, label="seed", study="other", config=config(seed=1))
    drawn = store(known, label="drawn", config=config())
    drawn = drawn.assign_coords(query=[f"q{k}" for k in range(3, 9)])
    truth = store(known, label="truth", config=config())
    truth = truth.assign(truth=truth["truth"].roll(candidate=1))
    every = alike | {"more": more, "seed": seed, "drawn": drawn, "truth": truth}
    table = compare(every, QUICK)
    members = {tuple(sorted(part["method"])) for _, part in table[table["control"] == ""].groupby("section")}
    assert members == {("one", "two"), ("more",), ("seed",), ("drawn",), ("truth",)}
    told = table.drop_duplicates("method").set_index("method")["differs"]
    assert told["one"] == told["two"] == ""
    assert told["more"] == "other candidates (candidates.b=4, not 3)"
    assert told["seed"] == "another model or other texts (seed=1, not 0)"
    assert told["drawn"].startswith("other queries (3 of 6 are the same)") and told["truth"] == "another truth"
    chance = table[table["control"] == "random"].set_index("section")["accuracy"]
    assert len(chance) == 5 and chance[0] == pytest.approx(1 / 3) and chance[1] == pytest.approx(1 / 4)
    headlines = [found.headline for found in findings(table)]
    assert len(headlines) == 5 and not any("best of" in text for text in headlines[1:])
    write_report(tmp_path, every, {"query": {}, "train": {}}, QUICK)
    page, printed = (tmp_path / "report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    for words in ("other candidates (candidates.b=4, not 3)", "another truth"):
        assert words in page and words in " ".join(printed.split())


def test_a_store_of_some_of_the_queries_is_listed_and_not_ranked():
    whole, some = store([True] * 6, label="whole"), store([True] * 6, label="some")
    table = compare({"some": some.isel(query=slice(0, 3)), "whole": whole}, QUICK)
    assert parts_of(table) == [("asked", 0)]
    (found,) = findings(table)
    assert found.headline.startswith("whole: accuracy 0.500") and "best of" not in found.headline


def test_the_order_of_candidates_is_no_difference():
    one = store([True] * 6, label="one")
    (section,) = sections({"one": one, "two": one.isel(candidate=[2, 0, 1])})
    assert section.labels == {"one", "two"}


@pytest.mark.long
def test_runs_of_other_draws_stand_apart(commands):
    """Seeds draw other queries and train other models."""
    commands.done(
        "attribute", *TINY, "metric.plots=false", "-m", "seed=0,1", "method=bm25,random", "dataset.query_limit=4"
    )
    commands.capfd.readouterr()
    arguments = commands.arguments(["runs=[multirun]", "metric.plots=false", "metric.bootstrap=20"])
    assert main("evaluate", Path(__file__).parents[2] / "conf", ["evaluate.py", *arguments]) == 0
    printed = " ".join(commands.capfd.readouterr().out.split())
    page = only("outputs/evaluate/*/report.html").read_text(encoding="utf-8")
    assert "apart from the others" in printed and "seed=1, not 0" in printed and "seed=1, not 0" in page
    assert "of 4 methods" not in page and "best of 2" not in page


@pytest.mark.parametrize(
    ("stage", "option", "name"),
    [
        ("attribute", "dataset.query_sets=[paraphrased,paraphrased]", "paraphrased"),
        ("attribute", "method.on.components=[embed,norms,embed]", "embed"),
        ("evaluate", "runs=[a,b,a]", "a"),
        ("attribute", "model=eurollm1b7 model.checkpoints=[a,a]", "a"),
    ],
)
def test_a_name_in_a_list_stands_once(commands, stage, option, name):
    line = commands.refused(stage, *option.split())
    assert f"'{name}' stands twice" in line and option.split()[-1].split("=")[0] in line


def test_names_of_a_data_set_stand_once():
    with pytest.raises(UserError, match=r"dataset\.query_sets: 'paraphrased' stands twice"):
        Text(path="a.txt", query_sets=["paraphrased", "paraphrased"])


def test_a_title_tells_what_is_known():
    table = compare({"dot": store([True, False, False] * 2)}, QUICK)
    assert title(table, "asked") == "asked (6 queries, the source known of 2)"
