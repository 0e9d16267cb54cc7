"""Linear datamodeling score: how well sums of scores foretell what models trained on subsets do.

Source: Ilyas et al. 2022; Park et al. 2023, definition 2.3. For query q, subsets S_1 … S_m of the training set and the
outputs f(q; S_j) of models trained on them, LDS(q) is Spearman's correlation over j of Σ_{k ∈ S_j} τ(q, k) with
f(q; S_j). Scores with this program's sign make it positive.

Retrained from the explained start in its batches the outputs depend on the subset alone. With starts of their own they
vary with these too, and no score foretells that: what a perfect one would reach is the noise ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.resampled_ranks import spearman_interval, tell_few
from tdaexp.metrics.retrained import CEILING, OWN, Judged, Retrained
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError


def subset(examples: int, fraction: float, seed: int, number: int) -> np.ndarray:
    """Members [N] bool of subset `number`: round(fraction · N) examples, drawn by (seed, fraction, number).

    At most all but one are taken, so that a fraction near 1 leaves one out.
    """
    size = max(1, min(examples - 1, round(fraction * examples)))
    chosen = np.random.default_rng([seed, round(fraction * 1e6), number]).permutation(examples)[:size]
    member = np.zeros(examples, dtype=bool)
    member[chosen] = True
    return member


def scores_of_all(store: xr.Dataset, train: list[str]) -> np.ndarray:
    """Scores [Q, N] of a store of any method, columns in the order of the ids `train`.

    Of a decomposition all other axes are summed. Errors (UserError): an axis was summed, or an example of `train` has
    no score.
    """
    values = _dense(store)
    missing = sorted(set(train) - set(values["train"].values))
    if missing:
        raise UserError(
            f"influence store: {len(missing)} training examples have no score, '{missing[0]}' among them; choose "
            "candidates=all"
        )
    found = known_scores(store, train)
    if np.isnan(found).any():
        raise UserError("influence store: not every pair has a score; choose candidates=all")
    return found


def known_scores(store: xr.Dataset, train: list[str]) -> np.ndarray:
    """As `scores_of_all`, NaN for a pair without a score."""
    found: np.ndarray = _dense(store).reindex(train=train).transpose("query", "train").values
    return found.astype(np.float64)


def _dense(store: xr.Dataset) -> xr.DataArray:
    """The answer as [query, train]."""
    if "candidate" in store.dims:
        return influence.dense(store)
    values = store["influence"]
    for axis in ("query", "train"):
        if axis not in values.dims:
            raise UserError(
                f"influence store: the axis {axis} was summed; it needs method.keep=[query,train], "
                "as python attribute.py experiment=explaind_lds has"
            )
    return values.sum([axis for axis in values.dims if axis not in ("query", "train")], skipna=False)


def lds(scores: np.ndarray, members: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """LDS per query [Q] of `scores` [Q, N], for subsets `members` [S, N] and the retrained models' `outputs` [S, Q].

    NaN where a query's output or its prediction is the same for all subsets.
    """
    return spearman(scores @ members.T.astype(np.float64), outputs.T)


def lds_interval(scores: np.ndarray, members: np.ndarray, outputs: np.ndarray, settings: MetricSettings) -> Interval:
    """The mean LDS over queries with a percentile interval over subsets and queries; arguments as for `lds`.

    A query all of whose predictions are the same counts 0: nothing is foretold.
    """
    return spearman_interval(scores @ members.T.astype(np.float64), outputs.T, settings)


def judge_lds(evidence: Retrained, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """LDS of each method's `scores` [Q, N] (NaN rows: a query that it does not answer), in each query set and start.

    Errors (UserError): no query whose measurement varies over the subsets; as of the bank.
    """
    settings = evidence.settings.lds
    assert settings is not None
    tell_few("lds.subsets", settings.subsets)
    count = len(evidence.problem.train)
    members = np.stack(
        [subset(count, 1 - settings.left_out, evidence.settings.seed, j) for j in range(settings.subsets)]
    )
    found = []
    remedy = "leave more out (metric.lds.left_out) or train longer"
    for start, outputs, varies in evidence.starts(members, range(settings.subsets), "lds", remedy):
        ceilings = _ceilings(evidence, outputs) if start == OWN and settings.ceiling else None
        for name, rows in evidence.by_query_set().items():
            mine = rows[varies[rows]]
            for label, values in scores.items():
                known = mine[~np.isnan(values[mine]).any(1)]
                if len(known):
                    one = lds_interval(values[known], members, outputs[:, known], evidence.settings)
                    found.append(Judged(label, name, f"lds_{start}", one, len(known)))
            if ceilings is not None and len(mine):
                top = float(ceilings[mine].mean())
                found.append(Judged(CEILING, name, f"lds_{start}", Interval(top, math.nan, math.nan), len(mine)))
    return found


def _ceilings(evidence: Retrained, outputs: np.ndarray) -> np.ndarray:
    """The LDS [Q] of a score that foretells the part of the `outputs` [S, Q] exactly that is not the starts' doing.

    Trainings on all examples vary by their starts alone: σ² of that, out of the variance over subsets, is noise. A
    perfect score then correlates by √(1 − σ²/total), whose rank correlation is 6/π asin(r/2) under normality.
    """
    settings = evidence.settings.lds
    assert settings is not None
    everyone = np.ones(len(evidence.problem.train), dtype=bool)
    variants = [evidence.variant(everyone, OWN, -1 - k) for k in range(settings.ceiling)]
    noise = evidence.outputs(variants, "lds, noise ceiling").var(0, ddof=1)
    return ceiling(noise, outputs.var(0, ddof=1))


def ceiling(noise: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Rank correlation that a perfect score has, where `noise` is that share of the `total` variance."""
    correlation = np.sqrt(np.clip(1 - noise / np.where(total > 0, total, 1), 0, 1))
    return np.asarray(6 / np.pi * np.arcsin(correlation / 2))
