"""Leave-one-out: scores against what models answer that were trained without one example.

Source: Cook 1977; Koh and Liang 2017, section 4.2. For query q and examples i drawn at random, Spearman's correlation
over i of τ(q, i) with -f(q; all but i), where f is the query's measurement by a model trained on the others. Scores
with this program's sign make it positive. An example whose absence changes nothing (it was in no batch) ties with the
others of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tdaexp.metrics.resampled_ranks import spearman_interval, tell_few
from tdaexp.metrics.retrained import Judged, Retrained


def left_out(examples: int, count: int, seed: int) -> np.ndarray:
    """Which `count` of the examples (all, where there are fewer) are left out, by rising row."""
    return np.sort(np.random.default_rng([seed, examples]).choice(examples, min(count, examples), replace=False))


def judge_leave_one_out(evidence: Retrained, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """The mean correlation over queries of each method's `scores` [Q, N], in each query set and start.

    Rows of NaN are of queries that a method does not answer. Intervals are over examples and queries. Errors
    (UserError): no query whose measurement varies; as of the bank.
    """
    settings = evidence.settings.leave_one_out
    assert settings is not None
    count = len(evidence.problem.train)
    rows = left_out(count, settings.examples, evidence.settings.seed)
    tell_few("leave_one_out.examples", len(rows))
    members = np.ones((len(rows), count), dtype=bool)
    members[np.arange(len(rows)), rows] = False
    found = []
    remedy = "train longer, or take metric=lds"
    for start, outputs, varies in evidence.starts(members, rows.tolist(), "leave_one_out", remedy):
        for name, queries in evidence.by_query_set().items():
            mine = queries[varies[queries]]
            for label, values in scores.items():
                known = mine[~np.isnan(values[mine]).any(1)]
                if len(known):
                    one = spearman_interval(values[np.ix_(known, rows)], -outputs[:, known].T, evidence.settings)
                    found.append(Judged(label, name, f"leave_one_out_{start}", one, len(known)))
    return found
