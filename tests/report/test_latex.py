"""The comparison as LaTeX: rows as on the page, letters escaped, bold only what its interval separates."""

import numpy as np
import pandas as pd
import pytest

from tdaexp.metrics.compare import compare
from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.latex import escaped, separated, table_tex
from tdaexp.report.tables import columns_of, parts_of, rows_of


@pytest.fixture(scope="module")
def table(stores):
    return compare({f"{label} [a_b=5 %]": one for label, one in stores.items()}, MetricSettings(bootstrap=50))


def test_every_part_is_a_table_with_the_rows_of_the_page(table):
    text = table_tex(table, MetricSettings())
    bodies = text.split(r"\begin{tabular}")[1:]
    assert len(bodies) == text.count(r"\end{tabular}") == len(parts_of(table)) == 2
    for body, (name, section) in zip(bodies, parts_of(table), strict=True):
        rows = rows_of(table, name, section)
        columns = columns_of(rows)
        layout, *_ = body.removeprefix("{").split("}")
        assert layout == "l" + "r" * (len(columns) - 1)
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(rows)
        assert all(line.count(" & ") == len(columns) - 1 for line in lines)
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
    assert r"select [a\_b=5 \%] & " in text and "a_b" not in text.replace(r"a\_b", "")
    assert text.startswith("% needs \\usepackage{booktabs}\n% brackets: 95 % intervals, bootstrap over queries\n")


def test_jobs_without_a_result_are_said(table):
    text = table_tex(table, MetricSettings(), ["method=cg: failed (50 %)"])
    assert "% Partial: 1 job has no result yet\n%   method=cg: failed (50 %)\n" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"50 % of a_b & c#1 {x} $ ~ ^ \\", r"50 \% of a\_b \& c\#1 \{x\} \$ \textasciitilde{} \textasciicircum{} "
         r"\textbackslash{}\textbackslash{}"),
        ("− -0.497 [-0.530, -0.460]", "$-$ $-$0.497 [$-$0.530, $-$0.460]"),
        ("≈ λ=1e-4", r"$\approx$ $\lambda$=1e-4"),
        ("[x]", "{}[x]"),
        ("*", "{}*"),
        ("a-1 b", "a-1 b"),
        ("", ""),
    ],
)  # fmt: skip
def test_letters_that_mean_something_are_escaped(text, expected):
    assert escaped(text) == expected


def part(*rows):
    columns = ("method", "control", "heldout", "heldout_low", "heldout_high", "queries")
    return pd.DataFrame(rows, columns=columns)


BEST = ("best", "", 0.9, 0.85, 0.95, 10)


def test_the_best_is_bold_only_where_its_interval_lies_above_all_others():
    apart, near = ("apart", "", 0.7, 0.6, 0.84), ("near", "", 0.8, 0.7, 0.86)
    control, some = ("BM25", "BM25", 0.99, 0.98, 1.0, 10), ("some", "", 0.95, 0.9, 1.0, 4)
    assert separated(part(BEST, (*apart, 10), control, some), "heldout") == "best"
    assert separated(part(BEST, (*apart, 10), (*near, 10)), "heldout") is None
    assert separated(part(BEST), "heldout") is None
    assert separated(part(BEST, ("single", "", 0.5, np.nan, np.nan, 10)), "heldout") is None
    missing = part(BEST, (*apart, 10), ("partial", "", 0.99, 0.98, 1.0, 10)).assign(missing=[0, 0, 1])
    assert separated(missing, "heldout") == "best"


def test_bold_cells_are_those_of_the_best():
    rows = [("best", 0.9, 0.85, 0.95), ("other", 0.5, 0.4, 0.6)]
    table = pd.DataFrame(
        [
            {"method": name, "query_set": "asked", "section": 0, "differs": "", "control": "", "queries": 9,
             "with_truth": 9, "heldout": value, "heldout_low": low, "heldout_high": high, "accuracy": value,
             "selected": False, "vs_bm25": ""}
            for name, value, low, high in rows
        ]
    )  # fmt: skip
    bounded = [f"{key}{end}" for key in ("mrr", "recall", "rank_correlation", "minus_bm25")
               for end in ("", "_low", "_high")]  # fmt: skip
    table = table.assign(**dict.fromkeys((*bounded, "share", "fidelity", "answered"), np.nan))
    text = table_tex(table, MetricSettings())
    assert r"best & \textbf{0.900 [0.850, 0.950]} \\" in text and "other & 0.500 [0.400, 0.600] \\\\" in text
