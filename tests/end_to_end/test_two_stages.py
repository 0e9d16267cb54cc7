"""The toy experiments of the multi-stage paper as commands, on data and models so small that they take seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import metrics, only, rows

from tdaexp import influence

TINY = (
    "model.config.hidden_size=16",
    "model.config.num_hidden_layers=2",
    "model.config.intermediate_size=24",
    "model.vocab_size=320",
    "trainer.fit.steps=5",
    "trainer.finetune.steps=3",
    "metric.bootstrap=50",
    "metric.plots=false",
)
STAGES = (*TINY, "dataset.people=8", "dataset.relations=2", "dataset.phrasings=2")


@pytest.mark.long
def test_figure_3_over_damping_and_its_baselines(commands):
    commands.done("attribute", "experiment=msif_fig3", *STAGES, "method.damping=1e-2,1e-3")
    commands.done("attribute", "experiment=msif_fig3_baselines", *STAGES)
    folders = [Path("multirun/msif_fig3-toy"), Path("multirun/msif_fig3_baselines-toy")]
    table = [row for folder in folders for row in rows(folder)]
    assert [row["status"] for row in table] == ["done"] * 7
    runs = f"runs=[{folders[0]},{folders[1]}]"
    commands.done("evaluate", runs, "metric.bootstrap=50", "metric.top_k=10")
    found, folder = metrics(only("outputs/evaluate/*")), only("outputs/evaluate/*")
    labels = {key.split("/")[0] for key in found}
    wanted = {f"{name} (λ {damping})" for name in ("ekfac", "multistage") for damping in ("0.01", "0.001")}
    assert labels == wanted | {"bm25", "repsim", "dot across stages"}
    assert all(0 <= found[f"{label}/facts/{key}"] <= 1 for label in labels for key in ("mrr", "recall@10", "answered"))
    assert {file.stem for file in (folder / "plots").glob("*.svg")} == {"accuracies", "by_method.damping"}


def test_figure_2_tells_how_far_the_second_stage_moved(commands):
    commands.done("attribute", "experiment=msif_fig2", *STAGES, "metric.plots=true")
    folder = only("outputs/attribute/toy_recall-biographies_qa-bm25-*")
    found = metrics(folder)
    assert 0 < found["proximity/relative"] < 1 and found["proximity/distance_sq"] > 0
    head, *body = (folder / "proximity.csv").read_text().splitlines()
    assert head.startswith("component,type,depth,size,distance,norm,relative") and len(body) == 14
    assert (folder / "plots" / "proximity.svg").exists()


def test_the_case_study_is_a_page_of_the_model_s_own_answers(commands):
    commands.done("attribute", "experiment=msif_case_study", *STAGES, "method.damping=0.01", "dataset.query_limit=3")
    folder = only("outputs/attribute/toy_recall-biographies_qa-multistage-*")
    texts = json.loads((folder / "texts.json").read_text())
    assert len(texts["query"]) == 3 and all(name.endswith("/generated") for name in texts["query"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(text[0].split("?")[0] in page for text in texts["query"].values())


def test_single_stage_methods_explain_the_stage_that_they_are_told(commands):
    common = (*STAGES, "dataset=biographies_qa", "model=toy_recall", "method=ekfac", "candidates=all")
    for stage in ("pretrained", "finetuned"):
        commands.done("attribute", *common, f"stage={stage}", f"hydra.run.dir=run-{stage}")
    one, two = (metrics(Path(f"run-{stage}")) for stage in ("pretrained", "finetuned"))
    assert one["facts/mrr"] != two["facts/mrr"]
    assert "stage" in commands.refused("attribute", *common, "stage=fine-tuned")


@pytest.mark.long
def test_table_1_compares_with_converged_conjugate_gradients(commands):
    own = ("dataset.people=12", "candidates.b=10", "dataset.query_limit=4")
    small = (*(text for text in TINY if "finetune" not in text), *own)
    parts = [
        ("msif_table1", "method.damping=1.0"),
        ("msif_table1_solvers", "method.damping=1.0", "method=cg", "method.preconditioner=none"),
        ("msif_table1_solvers", "method.damping=1.0", "method=lissa", "method.depth=5"),
        ("msif_table1_baselines", "method.components=[layers.0.mlp.up,layers.1.mlp.up]", "method=dot,cka"),
    ]
    for number, (name, *own) in enumerate(parts):
        commands.done("attribute", f"experiment={name}", *small, *own, f"hydra.sweep.dir=multirun/{number}")
    runs = ",".join(f"multirun/{number}" for number in range(len(parts)))
    commands.done("evaluate", f"runs=[{runs}]", "metric.reference=cg", "metric.bootstrap=50")
    folder = only("outputs/evaluate/*")
    found = metrics(folder)
    correlation = {key.split("/")[0]: value for key, value in found.items() if key.endswith("/rank_correlation")}
    assert len(correlation) == 6 and max(correlation.values()) == pytest.approx(1)
    assert (folder / "plots" / "accuracy_time.svg").exists()


@pytest.mark.long
def test_segments_of_both_stages(commands):
    """Checkpoints and AdamW's state are kept unasked; too long between them, the line says which training is meant."""
    keys = (*STAGES, "experiment=toy_msif", "method=source", "dataset.query_limit=2", "method.segments=2")
    line = commands.refused("attribute", *keys, "trainer.fit.checkpoint_every=2")
    assert "a checkpoint every 100 steps leave no checkpoint; set trainer.finetune.checkpoint_every=1" in line
    every = ("trainer.fit.checkpoint_every=2", "trainer.finetune.checkpoint_every=2")
    commands.done("attribute", *keys, *every, "hydra.run.dir=run")
    assert influence.load(Path("run/influence.zarr")).attrs["steps"] == [2, 4]


@pytest.mark.long
def test_without_a_second_stage_the_method_says_what_to_do(commands):
    line = commands.refused("attribute", *TINY, "dataset=biographies", "method=multistage")
    assert "one training stage" in line
    (told,) = re.findall(r"`python attribute.py (.*)`", line)
    commands.done("attribute", *told.split(), *STAGES, "dataset.query_limit=2")


@pytest.mark.long
def test_a_sweep_goes_on_behind_a_job_that_fails(commands):
    keys = (*TINY[:5], "metric.bootstrap=50", "metric.plots=false", "dataset.people=8", "dataset.query_limit=2")
    code, err = commands("attribute", "-m", "method=random,multistage,bm25", *keys)
    assert code == 1 and "experiment=toy_msif method=multistage" in err and "2 of 3 jobs done" in err
    assert [row["status"] for row in rows(only("multirun/*"))] == ["done", "failed", "done"]


@pytest.mark.parametrize("method", ["ekfac", "multistage"])
@pytest.mark.long
def test_tokens_of_the_best_pairs_in_file_and_page(method, commands):
    keys = ("experiment=toy_msif", "candidates=all", f"method={method}", "method.damping=0.01", "method.per_token=2")
    commands.done("attribute", *STAGES, *keys, "dataset.query_limit=3", "trainer.precision=float64")
    folder = only("outputs/attribute/*")
    pairs = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    assert [pair["rank"] for pair in pairs] == [1, 2] * 3
    for pair in pairs:
        for side in ("train", "query"):
            assert len(pair[f"{side}_tokens"]) == len(pair[f"{side}_shares"]) > 1
            assert sum(pair[f"{side}_shares"]) == pytest.approx(pair["score"], rel=1e-9)
    assert (folder / "report.html").read_text(encoding="utf-8").count('<div class="tokens-of">question</div>') == 6
    commands.done("evaluate", f"runs=[{folder}]", "metric.bootstrap=50", "metric.plots=false")
    (page,) = Path("outputs/evaluate").rglob("report.html")
    assert page.read_text(encoding="utf-8").count('<div class="tokens-of">question</div>') == 6
