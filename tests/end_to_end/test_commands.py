"""The three commands on a tiny version of the embedded default, and on the real products of OLMo-1B."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, metrics, only, rows

from tdaexp import influence

SUBJECT = [text for text in TINY if text.startswith(("model.", "dataset."))]
NO_PLOTS = "metric.plots=false"


@pytest.mark.long
def test_train_attribute_evaluate(commands):
    """What one command made the next one finds; each leaves the files that the next ones read."""
    trained = commands.done("train", *(text for text in TINY if not text.startswith(("decoding", "metric"))))
    numbers = metrics(only("outputs/train/*"))
    assert numbers["train/steps"] == 5 and 0 < numbers["train/loss"] < 7
    checkpoint = Path(trained.split("checkpoint: ")[1].split("\n")[0])
    before = (checkpoint / "model.safetensors").stat().st_mtime_ns
    err = commands.done("attribute", *TINY)
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == before and "training:" not in err
    assert "attributed 9,472 of 9,472 parameters (100 %) in 15 components; skipped: none" in err
    folder = only("outputs/attribute/toy_gpt-biographies-select-*")
    left = {file.name for file in folder.iterdir()}
    assert left >= {"config.yaml", "metrics.json", "influence.zarr", "report.html", "run.log", "row.json", "plots"}
    dataset = influence.load(folder / "influence.zarr")
    assert dict(zip(*np.unique(dataset["query_set"].values.astype(str), return_counts=True), strict=True)) == {
        "paraphrased": 20,
        "generated": 20,
    }
    assert dataset["truth"].values.any(axis=1).all() and dataset.sizes["candidate"] == 5
    page = (folder / "report.html").read_text(encoding="utf-8")
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    assert set(dataset["query"].values) <= set(texts["query"])
    assert "http-equiv" not in page and 'src="http' not in page and "<link" not in page  # self-contained
    for name in ("select", "BM25", "random"):
        assert name in page
    commands.done("attribute", *TINY, "method=bm25", NO_PLOTS)
    commands.done("evaluate", *SUBJECT, "metric.bootstrap=50")
    compared = metrics(only("outputs/evaluate/*"))
    assert compared["bm25/paraphrased/accuracy"] == compared["bm25/paraphrased/bm25_accuracy"]
    assert {key.split("/")[0] for key in compared} == {"select (accuracy, 5 %)", "bm25"}
    own = metrics(folder)
    for key in ("paraphrased/accuracy", "generated/accuracy", "generated/heldout_accuracy"):
        assert compared[f"select (accuracy, 5 %)/{key}"] == own[key]


@pytest.mark.long
def test_a_program_of_its_own(commands, executed):
    """`python attribute.py` works outside of the checkout, and says on stdout what it found."""
    code, err = commands.process("attribute", *TINY, "method=bm25", NO_PLOTS)
    assert code == 0, err
    assert 0 < metrics(only("outputs/attribute/toy_gpt-biographies-bm25-*"))["paraphrased/accuracy"] <= 1


@pytest.mark.long
def test_a_sweep_runs_the_model_once_and_leaves_a_row_for_each_job(commands, tmp_path):
    sweep = ("-m", "method=select,project", "budget=0.05,0.2")
    err = commands.done("attribute", *TINY, NO_PLOTS, *sweep, f"cache_dir={tmp_path}/cache")
    assert err.count("forward-backward passes") == 1 and err.count("training:") == 1
    table = rows(only("multirun/*"))
    assert [row["status"] for row in table] == ["done"] * 4
    accuracies = [float(row["paraphrased/accuracy"]) for row in table]
    shares = [float(row["paraphrased/share"]) for row in table]
    assert all(0 <= value <= 1 for value in accuracies)
    assert shares[0] <= 0.05 and shares[1] <= 0.2 and shares[0] < shares[1]
    for row in table:
        assert metrics(Path(row["folder"]))["paraphrased/accuracy"] == float(row["paraphrased/accuracy"])
    python, script, *again = shlex.split(table[1]["command"])
    assert (python, script) == ("python", "attribute.py")
    commands.done("attribute", *again)
    alone = only("outputs/attribute/*")
    one, two = (influence.load(folder / "influence.zarr") for folder in (alone, Path(table[1]["folder"])))
    assert one.identical(two)
    commands.done("evaluate", *SUBJECT, NO_PLOTS, f"runs=[{only('multirun/*')}]")
    assert len({key.split("/")[0] for key in metrics(only("outputs/evaluate/*"))}) == 4


@pytest.mark.long
def test_another_programs_scores_are_judged_alike(commands):
    """A store's own scores, written as JSON and as a matrix, get the store's own accuracies."""
    commands.done("attribute", *TINY, "method=full", NO_PLOTS)
    folder = only("outputs/attribute/*")
    dense = influence.dense(influence.load(folder / "influence.zarr"))
    nested = {
        str(query): {
            str(train): float(score)
            for train, score in zip(dense["train"].values, row, strict=True)
            if np.isfinite(score)
        }
        for query, row in zip(dense["query"].values, dense.values, strict=True)
    }
    Path("theirs.json").write_text(json.dumps(nested))
    np.save("matrix.npy", dense.values)
    own = metrics(folder)
    for name in ("theirs.json", "matrix.npy"):
        commands.done(
            "evaluate", *SUBJECT, NO_PLOTS, "metric.bootstrap=50", f"scores={name}", f"hydra.run.dir={name}-run"
        )
        found = metrics(Path(f"{name}-run"))
        for group in ("paraphrased", "generated"):
            for key in ("accuracy", "accuracy_low", "mrr", "bm25_accuracy", "rank_correlation"):
                assert found[f"{Path(name).stem}/{group}/{key}"] == pytest.approx(own[f"{group}/{key}"], abs=1e-12)
            assert found[f"{Path(name).stem}/{group}/fidelity"] == pytest.approx(1)


@pytest.mark.long
def test_a_finished_job_is_skipped_only_when_resuming(commands):
    one = [*TINY, "method=random", NO_PLOTS]
    commands.done("attribute", *one)
    said = "finished before, skipped"
    assert said in commands.done("attribute", *one, "resume=true")
    assert said not in commands.done("attribute", *one)


@pytest.fixture
def real_products(shared_data) -> Path:
    return shared_data / "select_or_project" / "olmo1b_paraphrased_products.npz"


@pytest.mark.long
def test_the_published_study_from_its_stored_products(commands, real_products):
    """988 queries on AMD-OLMo-1B-SFT: the numbers that its authors' own products give."""
    runs = {"full": [], "bm25": [], "select": ["budget=0.02"]}
    for method, extra in runs.items():
        folder = f"hydra.run.dir={method}"
        plots = [] if method == "full" else [NO_PLOTS]
        commands.done(
            "attribute",
            f"products={real_products}",
            "query_set=paraphrased",
            f"method={method}",
            *extra,
            *plots,
            "metric.bootstrap=50",
            folder,
        )
    found = metrics(Path("full"))
    assert found["paraphrased/queries"] == 988
    assert found["paraphrased/accuracy"] == found["paraphrased/full_accuracy"] == pytest.approx(0.9929, abs=5e-5)
    assert found["paraphrased/greedy_peak_accuracy"] == pytest.approx(0.998, abs=5e-4)
    assert found["paraphrased/greedy_peak_share"] < 0.02
    assert found["paraphrased/bm25_accuracy"] == pytest.approx(0.836, abs=5e-4)
    assert found["paraphrased/greedy_peak_heldout_accuracy"] <= found["paraphrased/greedy_peak_accuracy"]
    components = Path("full/components.csv").read_text().splitlines()
    assert len(components) == 1 + 113
    assert {"accuracy_curve.svg", "accuracies.png"} <= {file.name for file in Path("full/plots").iterdir()}
    selected = metrics(Path("select"))
    assert selected["paraphrased/share"] <= 0.02
    assert selected["paraphrased/accuracy"] > 0.995 > selected["paraphrased/full_accuracy"]
    assert selected["paraphrased/heldout_accuracy"] <= selected["paraphrased/accuracy"]
    commands.done("evaluate", "runs=[full,bm25,select]", NO_PLOTS, "metric.bootstrap=50")
    compared = metrics(only("outputs/evaluate/*"))
    assert compared["full/paraphrased/accuracy"] == found["paraphrased/accuracy"]
    assert compared["bm25/paraphrased/accuracy"] == pytest.approx(0.836, abs=5e-4)
    assert compared["select (accuracy, 2 %)/paraphrased/accuracy"] == selected["paraphrased/accuracy"]
