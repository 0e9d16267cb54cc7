"""LIMA from a file and from the hub's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdaexp.data import lima
from tdaexp.data.lima import Lima
from tdaexp.runtime.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "lima" / "lima_988.jsonl"


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, mark: str = "") -> list[dict]:
    return [{"id": f"lima_{i}", "prompt": f"q{i}{mark}", "completion": f"a{i}{mark}"} for i in range(count)]


def test_pairs_and_paraphrases_are_matched_by_id(tmp_path) -> None:
    path = jsonl(tmp_path / "a.jsonl", pairs(3))
    other = jsonl(tmp_path / "b.jsonl", pairs(3, "'")[::-1])
    corpus = Lima(path=path, paraphrases=other).load()
    assert [(r.id, r.prompt, r.completion) for r in corpus.train[:1]] == [("lima_0", "q0", "a0")]
    queries = corpus.queries["paraphrased"]
    assert [(q.id, q.prompt, q.completion, q.truth) for q in queries[:1]] == [
        ("lima_0/paraphrased", "q0'", "a0'", ("lima_0",))
    ]
    limited = Lima(path=path, paraphrases=other, limit=2).load()
    assert [q.truth for q in limited.queries["paraphrased"]] == [("lima_0",), ("lima_1",)]


def test_paraphrases_of_other_records_or_of_too_few_are_named(tmp_path) -> None:
    path = jsonl(tmp_path / "a.jsonl", pairs(3))
    with pytest.raises(UserError, match="no paraphrase of 'lima_2'"):
        Lima(path=path, paraphrases=jsonl(tmp_path / "few.jsonl", pairs(2))).load()
    with pytest.raises(UserError, match=r"more.jsonl, row 4: unknown training id 'lima_3'"):
        Lima(path=path, paraphrases=jsonl(tmp_path / "more.jsonl", pairs(4))).load()
    with pytest.raises(UserError, match=r"no paraphrases .* dataset\.paraphrases=FILE, or have them written"):
        Lima(path=path).load()
    with pytest.raises(UserError, match=r"dataset.limit=0"):
        Lima(path=path, limit=0)


def test_the_hub_file_keeps_single_turns_under_their_row_number(tmp_path, monkeypatch) -> None:
    rows = [
        {"conversations": ["q0", "a0"], "source": "wikihow"},
        {"conversations": ["q1", "a1", "q2", "a2"], "source": "multi_turn"},
        {"conversations": ["q3", "a3"], "source": "wikihow"},
    ]
    path = jsonl(tmp_path / "train.jsonl", rows)
    monkeypatch.setattr(lima, "download", lambda: Path(path))
    train = Lima(query_sets=[]).load().train
    assert [(r.id, r.prompt, r.completion) for r in train] == [("lima_0", "q0", "a0"), ("lima_2", "q3", "a3")]
    assert train[0].meta == {"source": "wikihow"}


def test_a_hub_file_of_another_kind_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lima, "download", lambda: Path(jsonl(tmp_path / "x.jsonl", [{"conversations": "q"}])))
    with pytest.raises(UserError, match="column 'conversations' is not a list"):
        Lima(query_sets=[]).load()


def test_an_unreachable_hub_is_one_line(monkeypatch) -> None:
    import huggingface_hub

    def refuse(name, file, repo_type):
        assert (name, file, repo_type) == ("GAIR/lima", "train.jsonl", "dataset")
        raise FileNotFoundError("cannot find the file\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match="accept its licence") as caught:
        Lima(query_sets=[]).load()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/lima/lima_988.jsonl")
def test_the_real_pairs_load() -> None:
    train = Lima(path=str(REAL), query_sets=[]).load().train
    assert len(train) == 988
    assert train[0].id == "lima_0" and train[0].prompt.startswith("Can brain cells move?")
