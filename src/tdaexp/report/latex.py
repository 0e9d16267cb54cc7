"""The comparison as LaTeX: one table for each part, with the rules of the package booktabs.

A number is bold where it is the best and its interval lies above that of every other method that is ranked: a best
value that its interval does not separate is no finding. Controls are not ranked, nor are methods that lack queries or
runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from tdaexp.metrics.settings import MetricSettings
from tdaexp.report.tables import columns_of, complete, headings, part_of, partial, parts_of, rows_of, title

BOLD = ("heldout", "mrr", "rank_correlation")
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
SIGNS = {"−": "-", "≈": r"\approx", "λ": r"\lambda", "×": r"\times", "→": r"\to", "≤": r"\le", "≥": r"\ge"}


def table_tex(table: pd.DataFrame, settings: MetricSettings, missing: Sequence[str] = ()) -> str:
    """The tables of all parts, each as it is on the page (`tables.rows_of`)."""
    over = table.attrs.get("over")
    kind = f"Student's t over {', '.join(over)}" if over else "bootstrap over queries"
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% brackets: {100 * settings.confidence:g} % intervals, {kind}",
        "% bold: the best, where its interval lies above all others'",
        *([f"% {partial(missing)}", *(f"%   {job}" for job in missing)] if missing else []),
    ]
    for name, section in parts_of(table):
        lines += ["", *_tabular(table, name, section)]
    return "\n".join(lines) + "\n"


def _tabular(table: pd.DataFrame, query_set: str, section: int) -> list[str]:
    rows = rows_of(table, query_set, section)
    columns, named = columns_of(rows), headings(table)
    bold = {name: separated(part_of(table, query_set, section), name) for name in BOLD}
    first_control = next((place for place, row in enumerate(rows) if row["control"]), None)
    lines = [
        f"% {' '.join(title(table, query_set, section).split())}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        _line(escaped(named[column]) for column in columns),
        r"\midrule",
    ]
    for place, row in enumerate(rows):
        lines += [r"\midrule"] if place and place == first_control else []
        cells = (_bold(escaped(row[name]), bold.get(name) == row["method"] and not row["control"]) for name in columns)
        lines.append(_line(cells))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def separated(part: pd.DataFrame, name: str) -> str | None:
    """The method that is best by a column of a part, where its interval lies above all others'; else None."""
    ranked = part[(part["control"] == "") & complete(part) & part[name].notna()]
    if len(ranked) < 2 or ranked[f"{name}_low"].isna().any():
        return None
    best = ranked[name].idxmax()
    others = ranked.drop(index=best)
    return str(ranked.loc[best, "method"]) if (ranked.loc[best, f"{name}_low"] > others[f"{name}_high"]).all() else None


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _bold(cell: str, bold: bool) -> str:
    return rf"\textbf{{{cell}}}" if bold and cell else cell


def escaped(text: str) -> str:
    """A text as LaTeX sets it: special letters escaped, signs in mathematics, no bracket where a row may begin."""
    found = "".join(SPECIAL.get(letter, f"${SIGNS[letter]}$" if letter in SIGNS else letter) for letter in text)
    found = re.sub(r"(?<![\w-])-(?=\d)", "$-$", found)
    return f"{{}}{found}" if found.startswith(("[", "*")) else found
