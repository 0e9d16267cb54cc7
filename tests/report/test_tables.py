import io

import pandas as pd
import pytest
from rich.console import Console

from tdaexp.report.summary import findings
from tdaexp.report.tables import columns_of, costs, number, print_table, rows_of, seconds, with_interval

NAN = float("nan")


def row(method, heldout, low=NAN, high=NAN, accuracy=None, verdict="", control="", selected=False, **more):
    line = {
        "method": method,
        "query_set": "generated",
        "section": 0,
        "differs": "",
        "control": control,
        "queries": 50,
        "with_truth": 50,
        "heldout": heldout,
        "heldout_low": low,
        "heldout_high": high,
        "accuracy": heldout if accuracy is None else accuracy,
        "selected": selected,
        "vs_bm25": verdict,
        "minus_bm25": NAN,
        "minus_bm25_low": NAN,
        "minus_bm25_high": NAN,
    }
    bounded = [f"{key}{end}" for key in ("mrr", "recall", "rank_correlation") for end in ("", "_low", "_high")]
    line |= dict.fromkeys(("share", "fidelity", "answered", *bounded), NAN)
    return line | more


@pytest.fixture
def table():
    losing = {"minus_bm25": -0.497, "minus_bm25_low": -0.53, "minus_bm25_high": -0.46, "verdict": "−"}
    return pd.DataFrame(
        [
            row("random (expected)", 0.2, control="random"),
            row("full", 0.216, 0.19, 0.24, **losing),
            row("BM25", 0.836, 0.81, 0.86, control="BM25"),
            row("select", 0.339, 0.31, 0.37, accuracy=0.363, selected=True, share=0.0071, **losing),
        ]
    )


def test_best_first_and_controls_last(table):
    rows = rows_of(table, "generated")
    assert [line["method"] for line in rows] == ["select", "full", "BM25", "random (expected)"]
    assert rows[0]["heldout"] == "0.339 [0.310, 0.370]"
    assert [line["accuracy"] for line in rows] == ["0.363", "", "", ""]
    assert rows[0]["share"] == "0.71 %"
    assert rows[3]["heldout"] == "0.200"


def test_terminal_table_is_wide_enough_in_a_file(table):
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=40))
    lines = [line for line in stream.getvalue().splitlines() if "select" in line]
    assert len(lines) == 1
    assert "− -0.497 [-0.530, -0.460]" in lines[0]


def test_long_labels_are_shown_to_their_last_letter(table):
    stream = io.StringIO()
    label = "ekfac (my_measurements:" + "a_measurement_of_the_first_token_" * 5 + "z)"
    print_table(pd.concat([table, pd.DataFrame([row(label, 0.2, 0.1, 0.3)])]), Console(file=stream, width=40))
    assert "…" not in stream.getvalue() and "z)" in stream.getvalue()


def test_a_method_that_loses_to_bm25_is_said_to(table):
    found = findings(table)[0]
    assert found.headline == "select: accuracy 0.339 [0.310, 0.370], best of 2 methods."
    text = " ".join(found.details)
    assert "does not beat BM25: it is worse than lexical overlap (0.836; paired difference -0.497" in text
    assert "it would show 0.363 (+0.024)" in text
    assert "Guessing gives 0.200." in text
    assert found.tone == "bad"


def test_selection_that_only_looks_better_is_not_the_best():
    flattered = [
        row("select", 0.5, 0.4, 0.6, accuracy=0.9, selected=True, verdict="≈"),
        row("full", 0.6, 0.5, 0.7),
    ]
    found = findings(pd.DataFrame([*flattered, row("BM25", 0.5, control="BM25")]))[0]
    assert found.headline.startswith("full: accuracy 0.600")
    assert "Within its interval: select." in found.details


def test_ties_and_missing_controls_are_named():
    found = findings(pd.DataFrame([row("a", 0.5, 0.4, 0.6), row("b", 0.5, 0.4, 0.6)]))[0]
    assert found.headline.endswith("shared with b.")
    assert found.details == ["There are no BM25 scores to compare with."]
    assert found.tone == "open"


def test_wins_and_draws():
    for verdict, words, tone in (("+", "It beats BM25", "good"), ("≈", "no difference is shown", "open")):
        lines = [row("a", 0.9, 0.8, 1.0, verdict=verdict), row("BM25", 0.85, control="BM25")]
        found = findings(pd.DataFrame(lines))[0]
        assert any(words in text for text in found.details)
        assert found.tone == tone


def test_costs_add_up():
    lines = [
        row("a", 0.5, cost_gradients=7300.0, cost_scoring=1.5),
        row("a", 0.6, cost_gradients=7300.0, cost_scoring=1.5),
        row("b", 0.5, cost_gradients=NAN, cost_scoring=90.0),
        row("BM25", 0.5, control="BM25"),
    ]
    heading, rows = costs(pd.DataFrame(lines))
    assert heading == ["method", "gradients", "scoring", "total"]
    assert rows == [["a", "2.03 h", "1.5 s", "2.03 h"], ["b", "", "90 s", "90 s"]]
    assert costs(pd.DataFrame([row("a", 0.5)]))[1] == []


def test_formats():
    assert number(NAN) == number(None) == seconds(NAN) == ""
    assert number(0.99291, 4) == "0.9929"
    assert with_interval(0.2, NAN, NAN) == "0.200"
    assert seconds(0.0123) == "0.0123 s"
    assert seconds(600) == "10.0 min"


def test_a_method_that_answers_some_queries_only_says_how_many(table):
    assert "queries" not in columns_of(rows_of(table, "paraphrased"))
    fewer = table.copy()
    fewer["queries"] = fewer["queries"].astype(float)
    fewer.loc[(fewer["method"] == fewer["method"].iloc[0]) & (fewer["query_set"] == "generated"), "queries"] = 4
    rows = rows_of(fewer, "generated")
    assert "queries" in columns_of(rows)
    assert {row["method"]: row["queries"] for row in rows}[fewer["method"].iloc[0]] == "4"
    assert sum(bool(row["queries"]) for row in rows) == 1


def test_brackets_of_a_label_are_not_markup(table):
    stream = io.StringIO()
    labelled = table.assign(method=table["method"].replace({"full": "full [bold] [method.damping=0.1]"}))
    print_table(labelled.assign(query_set="my [red] set"), Console(file=stream, width=200))
    assert "full [bold] [method.damping=0.1]" in stream.getvalue()
    assert "my [red] set (50 queries)" in stream.getvalue()
