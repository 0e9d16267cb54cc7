"""One store judged: every metric of every query set, with intervals and controls, as records and as flat numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics import controls, retrieval
from tdaexp.metrics.fidelity import fidelity
from tdaexp.metrics.intervals import UNKNOWN, Interval, bootstrap, versus
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.selection import ComponentStudy, held_out_accuracy
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import aligned, by_query_set, full_scores, has_products, share
from tdaexp.metrics.trials import spread, weights


@dataclass(frozen=True)
class Judgement:
    """One method on one query set. `with_truth` counts the queries whose sources are known: accuracies, MRR and recall
    are of those, and NaN where there is none.

    `accuracy` is on all queries; `held_out` is on queries that were not used for selecting, and equals `accuracy` where
    nothing was selected (`selected` False). `minus_bm25` is the paired difference of `held_out` and BM25's accuracy,
    `verdict` what it shows (+, −, ≈). `fidelity` and `rank_correlation` compare with the full gradient, or with the
    method that `metric.reference` names. Retrieval is averaged over trials, if there are several: `mrr_sd` is the
    standard deviation of MRR over them. `answered` is the share of queries that the model answers by itself.
    """

    queries: int
    with_truth: int
    accuracy: Interval
    held_out: Interval
    selected: bool
    mrr: Interval
    recall: Interval
    share: float
    fidelity: float
    rank_correlation: Interval
    bm25: Interval
    minus_bm25: Interval
    random: float
    answered: float = float("nan")
    mrr_sd: float = float("nan")

    @property
    def verdict(self) -> str:
        """Whether the method beats BM25."""
        return versus(self.minus_bm25)


def assess(dataset: xr.Dataset, settings: MetricSettings, reference: xr.Dataset | None = None) -> dict[str, Judgement]:
    """Judge each query set. `reference` holds the full gradient's products; by default the store's own, if any."""
    if reference is None and has_products(dataset):
        reference = dataset
    return {name: _assess(part, settings, reference) for name, part in by_query_set(dataset).items()}


def judge(
    dataset: xr.Dataset, settings: MetricSettings, studies: dict[str, ComponentStudy] | None = None
) -> dict[str, float]:
    """Flat metrics of a store by itself (`flat_metrics`)."""
    return flat_metrics(assess(dataset, settings), settings, studies or {})


def flat_metrics(
    judged: dict[str, Judgement], settings: MetricSettings, studies: dict[str, ComponentStudy]
) -> dict[str, float]:
    """Flat metrics, `<query set>/<metric>`; what is not defined is left out.

    `studies` (from `selection.study`) adds what selection of components can reach on the store's products.
    """
    flat: dict[str, float] = {}
    for name, found in judged.items():
        values = flatten(found, settings) | (_reach(studies[name]) if name in studies else {})
        flat |= {f"{name}/{key}": value for key, value in values.items() if not math.isnan(value)}
    return flat


def flatten(found: Judgement, settings: MetricSettings) -> dict[str, float]:
    """The numbers of a judgement by name; bounds of intervals end in `_low` and `_high`."""
    intervals = {
        "accuracy": found.accuracy,
        "mrr": found.mrr,
        f"recall@{settings.top_k}": found.recall,
        "rank_correlation": found.rank_correlation,
        "bm25_accuracy": found.bm25,
        "minus_bm25": found.minus_bm25,
    }
    if found.selected:
        intervals["heldout_accuracy"] = found.held_out
    flat: dict[str, float] = {"queries": found.queries, "queries_with_truth": found.with_truth}
    for key, interval in intervals.items():
        flat |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    rest = ("share", "fidelity", "answered", "mrr_sd")
    return flat | {"random_accuracy": found.random} | {key: getattr(found, key) for key in rest}


def _reach(found: ComponentStudy) -> dict[str, float]:
    return {
        "full_accuracy": found.full,
        "greedy_peak_accuracy": found.peak,
        "greedy_peak_share": found.peak_share,
        "greedy_peak_heldout_accuracy": float(found.peak_held_out.mean()),
        "best_component_accuracy": float(found.table["accuracy"].max()),
    }


def _assess(dataset: xr.Dataset, settings: MetricSettings, reference: xr.Dataset | None) -> Judgement:
    scores, sourced = influence.scores(dataset).values, influence.truth_known(dataset)
    known, judged, truth = bool(sourced.any()), scores[sourced], dataset["truth"].values[sourced]
    intervals = _retrieval(dataset, scores, settings) if known else {}
    like_full, rank = float("nan"), UNKNOWN
    if reference is not None:
        full = aligned(dataset, reference, full_scores(reference).values)
        like_full, ranks = _mean(fidelity(scores, full)), spearman(scores, full)
        if not np.isnan(ranks).all():
            (rank,) = bootstrap(ranks[None, ~np.isnan(ranks)], settings)
    own = intervals.get("accuracy", UNKNOWN)
    return Judgement(
        queries=len(scores),
        with_truth=len(truth),
        accuracy=own,
        held_out=intervals.get("held_out", own),
        selected="held_out" in intervals,
        mrr=intervals.get("mrr", UNKNOWN),
        recall=intervals.get("recall", UNKNOWN),
        share=share(dataset),
        fidelity=like_full,
        rank_correlation=rank,
        bm25=intervals.get("bm25", UNKNOWN),
        minus_bm25=intervals.get("minus_bm25", UNKNOWN),
        random=_mean(controls.random_accuracy(influence.with_truth(dataset))) if known else float("nan"),
        answered=float(dataset["answered"].mean()) if "answered" in dataset else float("nan"),
        mrr_sd=spread(retrieval.reciprocal_rank(judged, truth), settings) if known else float("nan"),
    )


def _retrieval(dataset: xr.Dataset, scores: np.ndarray, settings: MetricSettings) -> dict[str, Interval]:
    """Intervals by name over the queries whose sources are known, all on the same resamples; what the store cannot
    give is absent.
    """
    sourced = influence.truth_known(dataset)
    truth, scores = dataset["truth"].values[sourced], scores[sourced]
    rows = {"accuracy": retrieval.accuracy(scores, truth), "mrr": retrieval.reciprocal_rank(scores, truth)}
    if (~np.isnan(scores)).sum(1).max(initial=0) > settings.top_k:  # among k candidates every source is found
        rows["recall"] = retrieval.recall(scores, truth, settings.top_k)
    honest = rows["accuracy"]
    held_out = held_out_accuracy(dataset, settings)
    lexical = controls.bm25_accuracy(influence.with_truth(dataset))
    if held_out is not None:
        rows["held_out"] = honest = held_out
    if lexical is not None:
        rows |= {"bm25": lexical, "minus_bm25": honest - lexical}
    found = bootstrap(np.stack(list(rows.values())), settings, weights(len(truth), settings))
    return dict(zip(rows, found, strict=True))


def _mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN of nothing, without numpy's warning."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
