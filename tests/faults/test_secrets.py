"""Kind 3, what must not get out: passwords and keys, names that are ways out of a folder, cells that are formulas."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pandas as pd
import pytest
from commands import TINY
from hypothesis import given
from hypothesis import strategies as st

from tdaexp.app import sweep
from tdaexp.app.logs import Plain
from tdaexp.report.loggers import CsvLogger
from tdaexp.runtime.csvs import cell, csv_text, frame_csv
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.names import check_name
from tdaexp.runtime.secrets import holds_secret, is_variable, masked

OPENAI = ("method=random", "+dataset/paraphrase=openai", "dataset.paraphrase.cache=asked")


def nowhere(secret: str) -> None:
    """No file below the working folder holds the secret, in its content or in its name."""
    for file in Path().rglob("*"):
        assert secret not in str(file)
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    "option",
    [
        "dataset.paraphrase.endpoint=http://user:hunter2@127.0.0.1:9/v1",
        "dataset.paraphrase.endpoint=http://hunter2@127.0.0.1:9/v1",
        "dataset.paraphrase.endpoint=http://user:p/hunter2@127.0.0.1:9/v1",
        "dataset.paraphrase.endpoint=http://127.0.0.1:9/v1?api_key=hunter2",
        "dataset.paraphrase.endpoint=http://127.0.0.1:9/v1?k=hunter2",
        "dataset.paraphrase.endpoint=${oc.env:ADDRESS}",
        "dataset.paraphrase.endpoint=ftp://user:hunter2@127.0.0.1",
        "dataset.paraphrase.endpoint=[http://user:hunter2@127.0.0.1",
        "dataset.paraphrase.api_key_env=hunter2",
        "dataset.paraphrase.api_key_env=sk-hunter2hunter2",
        "dataset.paraphrase.api_kye_env=sk-hunter2hunter2",
        "model.name=sk-hunter2hunter2",
        "logger.project=hf_hunter2hunter2",
        "+hydra.job.env_set.OPENAI_API_KEY=hunter2",
        "+hydra.job.env_set.WANDB_API_KEY=hunter2",
        "+method.password=hunter2",
        "cache_dir=https://user:hunter2@host/x",
    ],
)
def test_a_password_or_a_key_is_refused_and_never_written(commands, monkeypatch, option):
    monkeypatch.setenv("ADDRESS", "http://user:hunter2@127.0.0.1:9/v1")
    sweep = ("-m", "seed=1,2") if "endpoint=http://user" in option else ()
    line = commands.refused("attribute", *OPENAI, option, *sweep)
    assert "hunter2" not in line and option.partition("=")[0].lstrip("+") in line
    assert not Path("outputs").exists() and not Path("multirun").exists()
    nowhere("hunter2")


def test_an_endpoint_that_repeats_the_key_does_not_bring_it_into_the_log(commands, monkeypatch):
    import urllib.error
    import urllib.request

    monkeypatch.setenv("MY_KEY", "hunter2hunter2")

    def refuse(request, timeout):
        raise OSError(f"bad key {request.headers['Authorization']}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    own = ("dataset.paraphrase.api_key_env=MY_KEY", "dataset.paraphrase.retries=0")
    line = commands.refused("attribute", *OPENAI, *TINY, *own, "dataset.paraphrase.endpoint=http://127.0.0.1:9/v1")
    assert "no paraphrase" in line and "***" in line and "hunter2" not in line
    nowhere("hunter2")


TEXTS = {
    "http://user:hunter2@host/v1": "http://***@host/v1",
    "GET https://h/v1?a=1&token=hunter2 failed": "GET https://h/v1?*** failed",
    "Authorization: Bearer hunter2hunter2": "Authorization: Bearer ***",
    "Incorrect API key provided: sk-proj-hunter2_hunter2.": "Incorrect API key provided: ***.",
    "{'api_key': 'hunter2', 'x': 1}": "{'api_key': '***', 'x': 1}",
    "OPENAI_API_KEY=hunter2 python": "OPENAI_API_KEY=*** python",
    "password: hunter2": "password: ***",
    "api_key_env=hunter2": "api_key_env=***",
}
PLAIN = [
    "trainer.tokens_per_batch=4096 decoding.max_new_tokens=6 eos_token=</s> pad_token: x",
    "dataset.paraphrase.api_key_env=OPENAI_API_KEY: this environment variable is not set",
    "dataset.paraphrase.endpoint=https://api.openai.com/v1",
    "model.tokenizer=other model.revision=0123456789abcdef0123456789abcdef01234567",
    "hydra.searchpath=file:///nowhere/a@b",
]


def test_masks_keep_what_is_no_secret():
    assert {text: masked(text) for text in TEXTS} == TEXTS
    assert [masked(text) for text in PLAIN] == PLAIN
    assert masked("the answer was xyz", "xyz", None, "") == "the answer was ***"
    assert all(masked(masked(text)) == masked(text) for text in TEXTS)
    assert holds_secret("token", "hunter2") and not holds_secret("token", "${oc.env:X}")
    assert not holds_secret("max_tokens", 5) and not holds_secret("token", None)
    assert is_variable("OPENAI_API_KEY") and not is_variable("4f7a0c") and not is_variable("A1B2C3D4E5F6")


def test_log_rows_and_errors_are_masked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = logging.LogRecord("x", 40, "f", 1, "refused by %s", ("http://a:hunter2@host",), None)
    try:
        raise ValueError("token=hunter2")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "hunter2" not in Plain().format(record) and "ValueError" in Plain().format(record)
    sweep.Row("train", "n", "f", "s", "c", str(tmp_path), error="http://a:hunter2@host is down").write(None)
    assert sweep.read_row(tmp_path).error == "http://***@host is down"
    nowhere("hunter2")
    assert str(UserError("line\nhttp://a:hunter2@host \x1b[31m \ud800")) == r"line http://***@host \x1b[31m \ud800"


@pytest.mark.parametrize(
    "option",
    [
        "model.name=../../evil",
        "model.name=/evil",
        "model.name=..",
        "model.name=''",
        "model.name=a\\\\b",
        f"model.name={'x' * 300}",
        "logger.project=../x",
        "logger.entity=a/b",
        "logger.group=a/b",
        "hydra.job.name=../../x",
        "hydra.output_subdir=../../x",
        "hydra.sweep.subdir=../x",
        "hydra.sweep.subdir=/x",
    ],
)
def test_names_are_names(commands, option):
    line = commands.refused("attribute", "method=random", *TINY, option)
    assert option.partition("=")[0] in line
    assert not Path("outputs").exists() and not list(Path("..").glob("evil*"))


@given(st.text(max_size=30))
def test_a_name_that_is_let_in_stays_in_its_folder(name):
    try:
        check_name("model.name", name)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        path = Path("/cache/models") / f"{name}-0123"
        assert path.parent == Path("/cache/models") and Path("/cache/models").joinpath(name).parent == path.parent


FORMULAS = ['=HYPERLINK("http://evil")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_is_no_formula(text):
    assert cell(text) == f"'{text}"
    assert next(csv.reader(csv_text(["a"], [[text]]).splitlines(keepends=True)[1:]))[0].startswith("'")


@pytest.mark.parametrize("value", ["-1.5", "+2", "-inf", "1e-3", "text", "", -1.5, None, 3, True])
def test_numbers_and_plain_texts_stay(value):
    assert cell(value) is value


def test_tables_of_every_writer_are_safe(tmp_path):
    table = pd.DataFrame({"=query": ["=1+1", "fine", None], "score": [-0.5, 1.0, float("nan")], "n": [-1, 2, 3]})
    lines = frame_csv(table).splitlines()
    assert lines == ["'=query,score,n", "'=1+1,-0.5,-1", "fine,1.0,2", ",,3"]
    logger = CsvLogger(tmp_path)
    logger.log_table("t", table)
    logger.log_metrics({"=x": -1.0}, step=3)
    assert (tmp_path / "tables" / "t.csv").read_text().splitlines() == lines
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,name,value", "3,'=x,-1.0"]
    row = sweep.Row("train", "n", "f", "s", "c", str(tmp_path / "0"), 0, overrides="+a=1", error="=evil()")
    (tmp_path / "0").mkdir()
    row.write(tmp_path)
    found = next(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert found["overrides"] == "'+a=1" and found["error"] == "'=evil()"


def test_every_csv_goes_through_one_writer():
    from commands import REPOSITORY

    for file in (REPOSITORY / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert file.name == "csvs.py" or not any(call in text for call in ("to_csv(", "csv.writer(", "DictWriter(")), (
            file
        )


def test_a_training_text_with_a_formula(commands):
    import json

    rows = [{"ask": f"Who wrote book {k}?", "answer": f'=HYPERLINK("http://evil/{k}")'} for k in range(8)]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ("dataset=text", "dataset.path=own.jsonl", "dataset.text_column=answer", "dataset.paraphrase_column=answer")
    tiny = [text for text in TINY if not text.startswith("dataset.")]
    plain = ("dataset.query_sets=[paraphrased]", "metric.plots=false", "logger=csv")
    commands.done("attribute", "method=random", *data, *tiny, *plain)
    (table,) = Path("outputs").rglob("tables/top_texts.csv")
    cells = [text for row in csv.reader(table.read_text().splitlines()) for text in row]
    assert any(text.startswith("'=HYPERLINK") for text in cells)
    assert not any(text.startswith("=") for text in cells)
