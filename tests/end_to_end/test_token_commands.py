"""A corpus of token numbers, by command: scores and pieces are those of the same texts as lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.scratch import Scratch

TEXTS = [f"{name} {k} lives in {town} and sells {k % 5} lamps." for k, (name, town) in
         enumerate(zip(["Anna", "Ben", "Cleo"] * 3, ["Riga", "Oslo", "Bonn"] * 3, strict=True))]  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
RUN = ("model=hub", "model.pretrained=hub", "trainer.precision=float32", "dataset=text", "dataset.template=plain",
       "dataset.query_path=ask.jsonl", "metric.plots=false", "metric.bootstrap=20", "trust=false")  # fmt: skip


@pytest.fixture
def corpus(commands):
    """A model in hub format, and its texts as lines and as tokens; a question."""
    start = Scratch(architecture="gpt_neox", config=SIZES, vocab_size=320).start(TEXTS)
    with quiet_transformers():
        start.model.save_pretrained("hub")
        start.tokenizer.save_pretrained("hub")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    Path("ask.jsonl").write_text(json.dumps({"id": 0, "text": "Anna sells lamps."}) + "\n", encoding="utf-8")
    examples = tokenise([Record(str(k), "", text) for k, text in enumerate(TEXTS)], start.tokenizer, template="plain")
    Path("rows.bin").write_bytes(np.concatenate([one.tokens for one in examples]).astype("<u2").tobytes())
    return examples


def files(folder: str) -> list[str]:
    return [Path(folder, name).read_text(encoding="utf-8") for name in ("texts.json", "rows.csv")]


def test_scores_are_those_of_the_texts(commands, corpus, tmp_path):
    run = (*RUN, "method=dot", "candidates=all")
    commands.done("attribute", *run, "dataset.path=rows.jsonl", "hydra.run.dir=lines")
    commands.done("attribute", *run, "dataset.path=rows.bin", "hydra.run.dir=tokens")
    lines, tokens = (influence.load(Path(one, "influence.zarr")) for one in ("lines", "tokens"))
    xr.testing.assert_equal(tokens, lines)
    assert files("tokens") == files("lines") and np.isfinite(tokens["influence"].values).all()
    np.save("ends.npy", np.cumsum(corpus.lengths) - 1)
    said = commands.refused("attribute", *run, "dataset.path=rows.bin", "dataset.offsets=ends.npy")
    assert "ends.npy: the last document ends at token" in said
    said = commands.refused("attribute", *run, "dataset.path=rows.bin", "model.pretrained=nobody/nothing")
    assert "dataset.path=rows.bin: holds tokens, which the model's tokenizer must tell apart" in said
    said = commands.refused("attribute", "dataset=text", "dataset.path=rows.bin", "dataset.query_path=ask.jsonl")
    assert "dataset.path=rows.bin: holds tokens, and a model that is trained here is trained on texts" in said


def test_an_index_of_pieces(commands, corpus):
    run = (*RUN, "method=project", "method.side=4", "candidates=best", "candidates.k=2", "dataset.chunk=12")
    commands.done("attribute", *run, "dataset.path=rows.jsonl", "hydra.run.dir=lines")
    said = commands.done("attribute", *run, "dataset.path=rows.bin", "hydra.run.dir=tokens")
    assert "no pass over them" in said and files("tokens") == files("lines")
    assert '"document"' in files("tokens")[0]
    commands.done("attribute", *run, "dataset.path=rows.bin", "plan=true")
