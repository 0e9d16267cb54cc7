"""What a terminal shows of an answer, at its own width."""

import io

import numpy as np
import pytest
from rich.console import Console

from tdaexp import influence
from tdaexp.report.console import line, print_answer, printable
from tdaexp.report.texts import Passage


@pytest.fixture(scope="module")
def store():
    return influence.build(
        np.array([[3.0, 2.0, 1.0, 0.5, -1.0, -2.0]] * 5),
        query=[f"q{k}" for k in range(5)],
        query_set=["asked"] * 5,
        train=np.array([[f"t{k}" for k in range(6)]] * 5, dtype=object),
        truth=np.zeros((5, 6), bool),
    )


def printed(folder, store, texts, width):
    stream = io.StringIO()
    print_answer(folder, store, texts, Console(file=stream, width=width, force_terminal=True, color_system=None))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_rows_and_paths_of_the_first_questions(tmp_path, store, width):
    train = {f"t{k}": Passage("Say [bold]it[/bold]: " + "so " * 40, f"[red]row[/red] {k} " + "x" * k) for k in range(6)}
    asked = {f"q{k}": Passage(f"[link=x]question[/link] {k}?", "yes") for k in range(5)}
    lines = printed(tmp_path, store, {"query": asked, "train": train}, width)
    assert [text for text in lines if "question" in text][:3] == [
        f"[link=x]question[/link] {k}? → yes" for k in range(3)
    ]
    rows = [text.split() for text in lines if "Say [bold]it[/bold]" in text]
    assert [row[:2] for row in rows[:4]] == [["+3.00", "t0"], ["+2.00", "t1"], ["+1.00", "t2"], ["-2.00", "t5"]]
    assert len(rows) == 12 and "and 2 more questions" in lines
    assert all("[red]row[/red]" in " ".join(row) for row in rows)  # a long prompt does not hide the answer
    assert lines[-4:] == [f"{tmp_path}/{name}" for name in ("report.html", "top.csv", "top.jsonl", "rows.csv")]
    assert max(map(len, lines[:-4])) <= width
    assert max(map(len, lines[:-4])) > 0.9 * width


def test_one_more_question_is_one(tmp_path, store):
    assert "and 1 more question" in printed(tmp_path, store.isel(query=slice(4)), None, 80)


def test_a_text_cannot_act_on_the_terminal():
    assert printable("\x1b[2J\x07wipe\u202e\r\nnext") == "[2J wipe next"
    assert line(Passage("", "a\nb"), 80) == "a b"
