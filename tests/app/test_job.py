"""A job is what is asked: its values, and what the files hold that they name."""

from __future__ import annotations

import pytest

from tdaexp.app.job import Job

NAMED = [
    ("model", "pretrained"),
    ("model", "adapter"),
    ("model", "tokenizer"),
    ("dataset", "path"),
    ("dataset", "offsets"),
    ("dataset", "query_path"),
    ("dataset", "finetune_path"),
    ("dataset", "paraphrases"),
    ("dataset", "sentences"),
    ("dataset", "facts"),
    ("dataset", "questions"),
    ("candidates", "encoder"),
    ("method", "selection"),
    ("method", "partition"),
]


def fingerprint(values):
    return Job([], values, None, {}).fingerprint


@pytest.mark.parametrize(("group", "key"), NAMED)
@pytest.mark.parametrize("folder", [False, True])
def test_another_content_of_a_file_makes_another_job(tmp_path, group, key, folder):
    """Else resume=true would take the answer about the old one for the new one's."""
    named = tmp_path / "named"
    file = named / "part.bin" if folder else named
    file.parent.mkdir(exist_ok=True)
    found = []
    for content in ("one", "another"):
        file.write_text(content)
        found.append(fingerprint({group: {key: str(named)}}))
    assert found[0] != found[1] == fingerprint({group: {key: str(named)}})


@pytest.mark.long
def test_the_ends_beside_a_file_of_tokens_count(tmp_path):
    (tmp_path / "a.bin").write_text("tokens")
    found = [fingerprint({"dataset": {"path": str(tmp_path / "a.bin")}})]
    for content in ("one", "another"):
        (tmp_path / "a.idx.npy").write_text(content)
        found.append(fingerprint({"dataset": {"path": str(tmp_path / "a.bin")}}))
    assert len(set(found)) == 3
    assert fingerprint({"dataset": {"path": ""}}) != fingerprint({"dataset": {"path": "b"}})


def test_each_of_several_checkpoints_counts(tmp_path):
    places = [tmp_path / "early", tmp_path / "late"]
    for place in places:
        place.write_text("weights")
    values = {"model": {"checkpoints": [str(place) for place in places]}}
    before = fingerprint(values)
    places[1].write_text("other weights")
    assert fingerprint(values) != before


@pytest.mark.parametrize("pattern", ["rows/*.jsonl", "*/a.jsonl", "**/*.jsonl"])
@pytest.mark.parametrize("absolute", [False, True])
def test_another_content_of_what_fits_a_pattern_makes_another_job(tmp_path, monkeypatch, pattern, absolute):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows" / "a.jsonl"
    file.parent.mkdir()
    named, found = str(tmp_path / pattern) if absolute else pattern, []
    for content in ("one", "another"):
        file.write_text(content)
        found.append(fingerprint({"dataset": {"path": named}}))
    (tmp_path / "rows" / "b").write_text("of another kind")
    found.append(fingerprint({"dataset": {"path": named}}))
    assert found[0] != found[1] == found[2]
