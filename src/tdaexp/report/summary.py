"""The result in a sentence or two per query set: which method is best, and does it beat the cheap control?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tdaexp.report.tables import complete, number, part_of, parts_of, sources, with_interval

TONES = {"+": "good", "−": "bad", "≈": "open", "": "open"}
UNJUDGED = "Training without the rows judges them all the same: drop=…, or evaluate.py metric=lds."


@dataclass(frozen=True)
class Finding:
    """One part's result: `query_set` its name, `queries` its number of queries in words, `headline`, `details`
    (sentences), `tone` (good, bad or open: against BM25; plain: nothing to compare).
    """

    query_set: str
    queries: str
    headline: str
    details: list[str]
    tone: str


def findings(table: pd.DataFrame) -> list[Finding]:
    """Sum up a comparison. Methods are ranked by accuracy on queries that they were not selected on."""
    return [_finding(name, part_of(table, name, section)) for name, section in parts_of(table)]


def _finding(name: str, table: pd.DataFrame) -> Finding:
    queries, sourced = int(table["queries"].max()), int(table["with_truth"].max())
    told = f"{queries} queries{sources(sourced, queries)}"
    differs = table["differs"].iloc[0]
    apart = [f"Ranked apart, nothing here compares with the other tables: {differs}."] if differs else []
    judged = table[(table["control"] == "") & table["heldout"].notna()]
    whole = judged[complete(table)[judged.index]]
    methods = judged if whole.empty else whole
    if methods.empty:
        if not sourced:
            return Finding(name, told, "No accuracy: no query's source is known.", [UNJUDGED, *apart], "plain")
        return Finding(name, told, "No accuracy: no method was run.", apart, "open")
    best = methods.loc[methods["heldout"].idxmax()]
    accuracy = with_interval(best["heldout"], best["heldout_low"], best["heldout_high"])
    equals = methods[methods["heldout"] == best["heldout"]]["method"].tolist()
    rank = f", best of {len(methods)} methods" if len(methods) > 1 else ""
    if len(equals) > 1:
        rank = f", shared with {', '.join(equals[1:])}"
    headline = f"{best['method']}: accuracy {accuracy}{rank}."
    details = [
        _rivals(best, methods),
        _against_bm25(best, table),
        _claimed(best),
        _against_chance(best, table),
        *apart,
    ]
    return Finding(name, told, headline, [text for text in details if text], TONES[best["vs_bm25"]])


def _rivals(best: pd.Series, methods: pd.DataFrame) -> str:
    """Methods whose accuracy the best one's interval does not rule out."""
    near = methods[(methods["heldout"] < best["heldout"]) & (methods["heldout"] >= best["heldout_low"])]
    return f"Within its interval: {', '.join(near['method'])}." if len(near) else ""


def _against_bm25(best: pd.Series, table: pd.DataFrame) -> str:
    lexical = table.loc[table["control"] == "BM25", "heldout"]
    if not best["vs_bm25"] or lexical.empty:
        return "There are no BM25 scores to compare with."
    bounds = with_interval(best["minus_bm25"], best["minus_bm25_low"], best["minus_bm25_high"])
    does = {
        "+": "It beats BM25",
        "−": "It does not beat BM25: it is worse than lexical overlap",
        "≈": "It does not beat BM25: no difference is shown",
    }[best["vs_bm25"]]
    return f"{does} ({number(lexical.iloc[0])}; paired difference {bounds})."


def _claimed(best: pd.Series) -> str:
    """What selecting and scoring on the same queries would have claimed."""
    if not best["selected"]:
        return ""
    gap = best["accuracy"] - best["heldout"]
    return (
        f"That is on queries held out from the selection; scored on the queries it was selected on it would "
        f"show {number(best['accuracy'])} ({gap:+.3f})."
    )


def _against_chance(best: pd.Series, table: pd.DataFrame) -> str:
    chance = table.loc[table["control"] == "random", "heldout"]
    return f"Guessing gives {number(chance.iloc[-1])}." if len(chance) else ""
