"""`evaluate.py` over runs of several seeds, over sweeps that are not done, and on scores that have no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import TINY, metrics, only
from scipy import stats

from tdaexp import influence

SUBJECT = [text for text in TINY if text.startswith(("model.", "dataset."))]
FEW = ("dataset.query_limit=6", "dataset.query_seed=0", "dataset.query_sets=[paraphrased]")
NO_PLOTS = "metric.plots=false"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, cache):
    """A sweep of two methods over three seeds, run once: its folder's parent."""
    from tdaexp.app import main

    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        repository = Path(__file__).resolve().parents[2]
        common = [*TINY, *FEW, NO_PLOTS, "logger=none", f"cache_dir={cache}"]
        argv = ["attribute.py", *common, "-m", "method=dot,random", "seed=0,1,2", "hydra.sweep.dir=multirun/seeds"]
        assert main("attribute", repository / "conf", argv) == 0
    return folder


@pytest.fixture
def swept(seeds, commands):
    shutil.copytree(seeds / "multirun", "multirun")
    return commands


@pytest.mark.long
def test_over_seeds_a_method_is_one_row(swept):
    swept.done("evaluate", *SUBJECT, *FEW, "over=seed", "hydra.run.dir=mean")
    found, table = metrics(Path("mean")), pd.read_csv("mean/table.csv")
    runs = pd.read_csv("mean/runs.csv")
    values = [metrics(job(k))["paraphrased/accuracy"] for k in range(3)]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values)) if np.ptp(values) else [
        np.mean(values)] * 2  # fmt: skip
    assert found["dot/runs"] == found["random/runs"] == 3
    assert found["dot/paraphrased/accuracy"] == pytest.approx(np.mean(values))
    assert (found["dot/paraphrased/accuracy_low"], found["dot/paraphrased/accuracy_high"]) == pytest.approx((low, high))
    assert set(table["method"]) == {"dot", "random", "BM25", "random (expected)"} and (table["section"] == 0).all()
    assert sorted(runs.loc[runs["control"].isna(), "method"]) == [f"dot [seed={k}]" for k in range(3)]
    page = Path("mean/report.html").read_text(encoding="utf-8")
    assert "means over seed" in page and "Student" in page and "Partial" not in page
    assert "% brackets: 95 % intervals, Student's t over seed\n" in Path("mean/table.tex").read_text(encoding="utf-8")


def test_without_it_seeds_are_not_ranked_together(swept):
    swept.done("evaluate", *SUBJECT, *FEW, NO_PLOTS, "runs=[multirun]", "hydra.run.dir=apart")
    table = pd.read_csv("apart/table.csv")
    assert sorted(table["section"].unique()) == [0, 1, 2]
    assert "apart from the others: another model or other texts (seed=1, not 0)" in Path("apart/report.html").read_text(
        encoding="utf-8"
    )


def test_half_a_sweep_gives_the_table_of_what_is_there(swept):
    shutil.rmtree(job(5))
    row = json.loads((job(2) / "row.json").read_text())
    (job(2) / "row.json").write_text(json.dumps({**row, "status": "failed", "error": "out of luck"}))
    for runs in ("runs=[multirun/seeds]", "runs=[]"):
        err = swept.done("evaluate", *SUBJECT, *FEW, NO_PLOTS, "over=seed", runs, "hydra.run.dir=half")
        assert "Partial: 2 jobs have no result yet" in err
        page = Path("half/report.html").read_text(encoding="utf-8")
        assert "method=dot seed=2: failed (out of luck)" in page and "method=random seed=2: not started" in page
        assert metrics(Path("half"))["dot/runs"] == 2


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("over=sede", "over: unknown key 'sede'; none of the runs has it; choices: seed"),
        ("over=3", "over=3: must be a text, or a list of texts as in over=[a,b]"),
    ],
)
def test_keys_that_cannot_be_averaged_over_are_one_line(swept, over, message):
    assert message in swept.refused("evaluate", *SUBJECT, *FEW, NO_PLOTS, over)


def test_a_seed_axis_with_one_value_is_one_line(swept):
    runs = f'runs=["{job(1)}","{job(4)}"]'
    line = swept.refused("evaluate", *SUBJECT, *FEW, NO_PLOTS, "over=seed", runs)
    assert "over=seed: every run has seed=1, and a mean needs runs of several values" in line


def job(number):
    """The folder of a job of the sweep: dot with seeds 0, 1, 2, then random."""
    return only(f"multirun/seeds/{number}-*")


def matrix_of(store):
    return influence.dense(store).values


def test_scores_need_no_run(swept):
    """A store's scores, judged where no run is found, get the store's own numbers."""
    folder = job(1).rename("mine")
    store = influence.load(folder / "influence.zarr")
    dense = influence.dense(store).to_pandas()
    nested = {query: row.dropna().to_dict() for query, row in dense.iterrows()}
    Path("theirs.json").write_text(json.dumps(nested))
    np.savez("named.npz", scores=dense.to_numpy(), query=dense.index.to_numpy(str), train=dense.columns.to_numpy(str))
    shutil.rmtree("multirun")
    files = "scores=[theirs.json,named.npz]"
    swept.done("evaluate", *SUBJECT, *FEW, NO_PLOTS, "metric.bootstrap=50", files, "seed=1", "hydra.run.dir=judged")
    own, found = metrics(folder), metrics(Path("judged"))
    for label in ("theirs", "named"):
        for key in ("accuracy", "accuracy_low", "mrr", "bm25_accuracy", "random_accuracy"):
            assert found[f"{label}/paraphrased/{key}"] == pytest.approx(own[f"paraphrased/{key}"], abs=1e-12)
    swept.done("evaluate", *SUBJECT, *FEW, NO_PLOTS, "scores=theirs.json", "runs=[mine]", "hydra.run.dir=beside")
    assert (pd.read_csv("beside/table.csv")["section"] == 0).all()


def test_scores_stand_beside_the_runs_of_their_subject_where_pairs_are_the_same(swept):
    store = influence.load(job(2) / "influence.zarr")
    np.save("theirs.npy", matrix_of(store))
    swept.done("evaluate", *SUBJECT, *FEW, NO_PLOTS, "scores=theirs.npy", "seed=2", "hydra.run.dir=found")
    table = pd.read_csv("found/table.csv").set_index("method")
    assert table.loc["theirs", "section"] == table.loc["dot", "section"] == 0
    assert table.loc["theirs", "heldout"] == table.loc["dot", "heldout"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dense: dense[:-1], r"the matrix has shape (5, "),
        (lambda dense: dense[:, :-1], r"needed: 6 queries × "),
        (lambda dense: np.where(np.isnan(dense), dense, np.nan), "has the score nan, which is not finite"),
    ],
    ids=["a query too few", "a training id too few", "not finite"],
)
def test_scores_that_do_not_fit_are_one_line(swept, change, message):
    store = influence.load(job(0) / "influence.zarr")
    np.save("theirs.npy", change(matrix_of(store)))
    shutil.rmtree("multirun")
    assert message in swept.refused("evaluate", *SUBJECT, *FEW, NO_PLOTS, "scores=theirs.npy")


def test_scores_for_other_queries_are_one_line(swept):
    shutil.rmtree("multirun")
    Path("theirs.json").write_text(json.dumps({"who": {"what": 1.0}}))
    line = swept.refused("evaluate", *SUBJECT, *FEW, NO_PLOTS, "scores=theirs.json")
    assert "of set 'paraphrased' has no scores; every query needs some" in line


def test_published_similarities_are_judged_on_the_pairs_of_a_products_file(commands):
    rng = np.random.default_rng(0)
    sizes = {"query_sq": (6, 3), "train_sq": (6, 4, 3)}
    np.savez("products.npz", dot=rng.normal(size=(6, 4, 3)), component=["a", "b", "c"], size=[1, 2, 3],
             query=[f"q{k}" for k in range(6)], target=rng.integers(4, size=6),
             **{name: rng.uniform(1, 2, shape) for name, shape in sizes.items()})  # fmt: skip
    commands.done("attribute", "products=products.npz", "method=full", NO_PLOTS, "hydra.run.dir=full")
    dense = influence.dense(influence.load("full/influence.zarr")).to_pandas()
    nested = {query: row.dropna().to_dict() for query, row in dense.iterrows()}
    Path("published.json").write_text(json.dumps(nested))
    commands.done("evaluate", "products=products.npz", "scores=published.json", NO_PLOTS, "hydra.run.dir=judged")
    assert metrics(Path("judged"))["queries/accuracy"] == metrics(Path("full"))["queries/accuracy"]
    shutil.copytree("full", "outputs/attribute/full")
    row = json.loads(Path("full/row.json").read_text())
    Path("outputs/attribute/full/row.json").write_text(json.dumps({**row, "folder": "outputs/attribute/full"}))
    commands.done("evaluate", "products=products.npz", "scores=published.json", NO_PLOTS, "hydra.run.dir=beside")
    table = pd.read_csv("beside/table.csv").set_index("method")
    assert table.loc["published", "section"] == table.loc["full", "section"] == 0
    assert table.loc["published", "fidelity"] == pytest.approx(1)
    assert "gives the pairs for scores=FILE where no runs" in commands.refused("evaluate", "products=products.npz")
    assert only("beside/table.tex").exists()
