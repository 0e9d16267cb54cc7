"""A corpus that is kept in stores, by command: the index and the answers are those of one in memory."""

from __future__ import annotations

import json
from pathlib import Path

from commands import TINY, only

from tdaexp.data import files
from tdaexp.index import index as index_module

ROWS = [{"id": f"r{k}", "text": f"{name} {k} lives in {town} and sells {k % 5} lamps."} for k, (name, town) in
        enumerate(zip(["Anna", "Ben", "Cleo"] * 4, ["Riga", "Oslo", "Bonn", "Graz"] * 3, strict=True))]  # fmt: skip
MODEL = (*(one for one in TINY if "people" not in one), "dataset=text", "metric.plots=false", "trust=false")
BEST = (*MODEL, "method=project", "method.side=4", "candidates=best", "candidates.k=3", "dataset.path=rows.jsonl")
ASKED = (*BEST, "dataset.query_path=ask.jsonl")


def lines(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(folder: str) -> list[str]:
    return [Path(folder, name).read_text(encoding="utf-8") for name in ("top.jsonl", "texts.json", "rows.csv")]


def test_an_index_serves_a_corpus_in_memory_and_in_stores(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(index_module, "DOCUMENTS", 5)
    own = f"cache_dir={tmp_path}/own"
    lines("rows.jsonl", ROWS)
    lines("ask.jsonl", [{"id": 0, "text": "Anna sells lamps."}])
    said = commands.done("attribute", *ASKED, own, "hydra.run.dir=memory")
    assert "index: 3 of 3 blocks are to be built" in said and not list((tmp_path / "own").glob("records/*"))
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    said = commands.done("attribute", *ASKED, own, "hydra.run.dir=stored")
    assert "all 3 blocks are there, 12 training examples; no pass over them" in said
    assert answer("stored") == answer("memory")
    stored = json.loads(Path("stored/texts.json").read_text(encoding="utf-8"))["train"]
    assert len(stored) == 6 and list(stored) == sorted(stored, key=lambda name: int(name[1:]))
    assert "12 training records, as they were read before" in commands.done(
        "attribute", *ASKED, own, "hydra.run.dir=again", "dataset.chunk=8"
    )
    assert "0 of them are damaged" in commands.done("evaluate", own, "cache=verify")
    victim = sorted((tmp_path / "own").glob("tokens/[!.]*/tokens.bin"))[0]
    victim.write_bytes(victim.read_bytes()[::-1])
    said = commands.done("evaluate", own, "cache=verify")
    assert f"{victim.parent}: damaged (tokens.bin: its checksum is wrong)" in said


def test_a_corpus_that_changed_is_read_again_and_its_blocks_are_to_be_built(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(index_module, "DOCUMENTS", 5)
    monkeypatch.setattr(files, "LARGE_BYTES", 1)
    lines("rows.jsonl", ROWS)
    own = f"cache_dir={tmp_path}/own"
    commands.done("attribute", *BEST, own, "dataset.query_sets=[]", "shard=1/1", "hydra.run.dir=first")
    model = only("own/models/[!.]*/model", tmp_path)
    same = ("model=hub", f"model.pretrained={model}", "trainer.precision=float32")
    keys = [one for one in BEST if not one.startswith("model.")]
    commands.done("attribute", *same, *keys, own, "dataset.query_sets=[]", "shard=1/1", "hydra.run.dir=second")
    lines("rows.jsonl", [*ROWS[:7], {"id": "new", "text": "Dora lives in Kiel."}, *ROWS[8:]])
    said = commands.done("attribute", *same, *keys, own, "dataset.query_sets=[]", "shard=1/1", "hydra.run.dir=third")
    assert "index: 1 of 3 blocks are to be built, 5 of 12 training examples" in said
