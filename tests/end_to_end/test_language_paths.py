"""Path decompositions of language models by the commands: a list of checkpoints, and a recorded training."""

from __future__ import annotations

import json

import pytest
from commands import TINY, metrics, only

from tdaexp import influence

STAND_IN = ["model.config.hidden_size=16", "model.config.num_hidden_layers=2", "model.config.intermediate_size=20",
            "model.vocab_size=320", "dataset.records=160", "dataset.held_out=24", "dataset.sentences=2",
            "trainer.fit.steps=8", "trainer.fit.warmup=2", "trainer.fit.batch_size=16",
            "trainer.fit.checkpoint_every=2"]  # fmt: skip


@pytest.fixture
def stand_in(commands, cache):
    """The folder of the stand-in's training."""
    commands.done("train", "experiment=eurollm", *STAND_IN)
    return only("models/toy_eurollm-*-every2-state", cache)


@pytest.mark.long
def test_the_stand_in_is_decomposed_and_analysed(commands, stand_in):
    commands.done("attribute", "experiment=explaind_eurollm", *STAND_IN)
    folder = only("outputs/attribute/*")
    found = metrics(folder)
    assert found["explaind/relative_error"] < 1e-4 and found["explaind/loss_change"] < 0
    store = influence.load(folder / "influence.zarr")
    assert list(store["step"].values) == [2, 4, 6, 8] and store["influence"].sizes["component"] == 17
    commands.done("evaluate", "experiment=eurollm", *STAND_IN, "analysis=explaind_eurollm", f"runs=[{folder}]")
    page = only("outputs/evaluate/*")
    assert {"by_type.csv", "by_depth.csv", "components.csv", "checkpoints.csv"} <= {f.name for f in page.iterdir()}
    drawn = {f.stem for f in (page / "plots").iterdir()}
    assert drawn == {"totals", "fig6", "fig14", "fig15", "fig15_absolute"}
    text = (page / "report.html").read_text(encoding="utf-8")
    assert "In toy_eurollm" in text and "The sum of the parts is the simulated change" in text


@pytest.mark.long
def test_the_papers_configuration_on_the_stand_ins_folders(commands, stand_in, tmp_path):
    file = tmp_path / "text.jsonl"
    rows = [{"text": f"Sentence {k} of a text.", "language": "en" if k % 3 else "de"} for k in range(90)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = ["experiment=explaind_eurollm", "scale=paper", f"model.pretrained={stand_in}/model", f"dataset.path={file}",
             "dataset.held_out=18", "trainer.fit.batch_size=24"]  # fmt: skip
    commands.done(
        "attribute", *given, f"model.checkpoints=[{stand_in}/checkpoints]", "method.keep=[step,component,train,query]"
    )
    folder = only("outputs/attribute/*")
    assert metrics(folder)["explaind/relative_error"] < 1e-4
    store = influence.load(folder / "influence.zarr")
    assert list(store["train"].values) == list(store["query"].values) == ["de", "en"]
    one, two = f"{stand_in}/checkpoints/step-2", f"{stand_in}/checkpoints/step-4"
    assert "oldest first" in commands.refused("attribute", *given, f"model.checkpoints=[{two},{one}]")
    assert "no such folder" in commands.refused("attribute", *given, f"model.checkpoints=[{one},{two}0]")
    assert "names none" in commands.refused("attribute", *given)
    other = [text for text in given if not text.startswith(("experiment", "scale"))]
    columns = ["model=eurollm1b7", "dataset=text", "dataset.text_column=text", "method=dot"]
    line = commands.refused("attribute", *columns, *other, f"model.checkpoints=[{one}]")
    assert "only explaind reads a list" in line


@pytest.mark.long
def test_a_recorded_language_model_is_decomposed(commands):
    recorded = [*TINY, "trainer.fit.record=1", "trainer.fit.clip=0", "dataset.query_sets=[paraphrased]",
                "dataset.query_limit=3"]  # fmt: skip
    commands.done("train", *(text for text in recorded if text.startswith(("model.", "dataset.", "trainer."))))
    assert metrics(only("outputs/train/*"))["train/steps"] == 5
    shared = ["method=explaind", "method.output=loss", "method.quadrature.nodes=4"]
    commands.done("attribute", *recorded, *shared, "method.keep=[train,query]")
    store = influence.load(only("outputs/attribute/*") / "influence.zarr")
    assert dict(store["influence"].sizes) == {"query": 3, "train": 20}
    total = store["influence"].sum("train") + store["regularisation"]
    change = store["change"].sum("output")
    assert float(abs(total - change).max()) < 1e-3 * float(abs(change).max())
    plain = [text for text in recorded if not text.startswith("trainer.fit.record")]
    assert "trainer.fit.keep=state" in commands.refused("attribute", *plain, *shared)
    assert "read by method=explaind only" in commands.refused("attribute", *recorded, "method=dot")
