"""A language model that was fine-tuned to classify, as two folders in hub format, through attribute and evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import metrics, only, rows
from transformers import GPTNeoXForSequenceClassification

from tdaexp import influence
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.scratch import Scratch

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOWNS, SIDES = ("Oslo", "Rome", "Graz", "Nice"), ("north", "south")


def lines(name: str, records: list[dict[str, str]]) -> None:
    Path(name).write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Documents, labelled questions, fine-tuning pairs and both models, in the working folder; the command's keys."""
    monkeypatch.chdir(tmp_path)
    documents = [{"id": f"d{n}", "text": f"Person {n} lives in {TOWNS[n % 4]} and likes it."} for n in range(8)]
    lines("documents.jsonl", documents)
    asked = [{"id": f"d{n}", "text": f"Where does person {n} live?", "side": SIDES[n % 2]} for n in (1, 4, 6)]
    lines("questions.jsonl", asked)
    lines("finetune.jsonl", [{"prompt": f"Person {n} is here.", "completion": SIDES[n % 2]} for n in (9, 10)])
    start = Scratch("gpt_neox", SIZES, vocab_size=300, context=64).start([one["text"] for one in documents])
    config = type(start.model.config)(**start.model.config.to_dict())
    config.id2label, config.label2id = {0: "north", 1: "south"}, {"north": 0, "south": 1}
    torch.manual_seed(1)
    after = GPTNeoXForSequenceClassification(config)
    after.gpt_neox.load_state_dict(start.model.gpt_neox.state_dict())
    with quiet_transformers():
        for folder, model in (("before", start.model), ("after", after)):
            model.save_pretrained(folder)
            start.tokenizer.save_pretrained(folder)
    return ("model=dolly3b", "model.pretrained=before", "model.template=plain", "dataset=text",
            "dataset.path=documents.jsonl", "dataset.id_column=id", "dataset.text_column=text",
            "dataset.query_path=questions.jsonl", "dataset.truth_column=id",
            "dataset.finetune_path=finetune.jsonl", "dataset.max_length=32",
            "dataset.query_sets=[paraphrased]", "candidates=all", "metric.bootstrap=20",
            "metric.plots=false")  # fmt: skip


@pytest.mark.long
def test_multistage_and_its_controls_in_one_table(keys, commands):
    both = (*keys, "model.finetuned=after", "dataset.label_column=side")
    commands.done("attribute", *both, "-m", "method=multistage,multistage_dot,repsim,bm25", "hydra.sweep.dir=sweep")
    assert [row["status"] for row in rows(Path("sweep"))] == ["done"] * 4
    store = influence.load(only("sweep/0*/influence.zarr"))
    assert store["influence"].shape == (3, 8, 12) and np.isfinite(store["influence"].values).all()
    assert store["truth"].values.sum() == 3 and store["answered"].dtype == bool
    texts = json.loads(only("sweep/0*/texts.json").read_text(encoding="utf-8"))
    assert texts["query"]["d1/paraphrased"] == ["Where does person 1 live?", "south"]
    commands.done(
        "evaluate", "runs=[sweep]", "metric.reference=multistage", "metric.bootstrap=20", "metric.plots=false"
    )
    found = metrics(only("outputs/evaluate/*"))
    assert found["multistage/paraphrased/rank_correlation"] == pytest.approx(1)
    assert 0 <= found["bm25/paraphrased/mrr"] <= 1


@pytest.mark.long
def test_what_does_not_go_together_is_one_line(keys, commands):
    both = (*keys, "model.finetuned=after")
    line = commands.refused("attribute", *both, "dataset.label_column=side", "method=ekfac")
    assert "method=ekfac: needs one model for training texts and queries" in line and "take multistage" in line
    line = commands.refused("attribute", *both, "method=multistage")
    assert "has no text to classify, and the model classifies" in line and "dataset.label_column=NAME" in line
    line = commands.refused("attribute", *both, "dataset.label_column=id", "method=multistage")
    assert "unknown class 'd1'" in line and "choices: north, south" in line
    line = commands.refused(
        "attribute",
        *keys,
        "dataset.query_path=null",
        "dataset.truth_column=null",
        "dataset.label_column=side",
        "method=bm25",
    )
    assert "dataset.label_column: is a column of dataset.query_path" in line
    line = commands.refused("attribute", *keys, "dataset.label_column=side", "model.pretrained=after", "method=bm25")
    assert "the checkpoint lacks" in line
