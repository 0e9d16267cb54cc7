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
    own = dataset is reference and "weight" not in dataset
    return {name: _assess(part, settings, reference, own) for name, part in by_query_set(dataset).items()}


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


def _assess(dataset: xr.Dataset, settings: MetricSettings, reference: xr.Dataset | None, own: bool) -> Judgement:
    """Judge one query set; `own`: its scores are the reference's."""
    sourced, blocks = influence.truth_known(dataset), influence.blocks(dataset)
    known = bool(sourced.any())
    parts = [_of_queries(part, settings, reference, own, known) for part in blocks]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    judged = {name: values[sourced] for name, values in rows.items()}
    intervals = _retrieval(dataset, judged, settings) if known else {}
    ranks = rows["rank"][~np.isnan(rows["rank"])]
    accuracy = intervals.get("accuracy", UNKNOWN)
    return Judgement(
        queries=len(sourced),
        with_truth=int(sourced.sum()),
        accuracy=accuracy,
        held_out=intervals.get("held_out", accuracy),
        selected="held_out" in intervals,
        mrr=intervals.get("mrr", UNKNOWN),
        recall=intervals.get("recall", UNKNOWN),
        share=share(dataset),
        fidelity=_mean(rows["fidelity"]),
        rank_correlation=bootstrap(ranks[None], settings)[0] if len(ranks) else UNKNOWN,
        bm25=intervals.get("bm25", UNKNOWN),
        minus_bm25=intervals.get("minus_bm25", UNKNOWN),
        random=_mean(judged["random"]) if known else float("nan"),
        answered=float(dataset["answered"].mean()) if "answered" in dataset else float("nan"),
        mrr_sd=spread(judged["mrr"], settings) if known else float("nan"),
    )


def _of_queries(
    part: xr.Dataset, settings: MetricSettings, reference: xr.Dataset | None, own: bool, known: bool
) -> dict[str, np.ndarray]:
    """Numbers of each query [q] of a block by name, NaN for what is not known of it.

    `own`: the reference's scores are the block's; `known`: the source of some query is known.
    """
    scores, nothing = influence.scores(part).values, np.full(part.sizes["query"], np.nan)
    rows = {"candidates": (~np.isnan(scores)).sum(1), "fidelity": nothing, "rank": nothing}
    if reference is not None:
        full = scores if own else aligned(part, reference, full_scores)
        rows |= {"fidelity": fidelity(scores, full), "rank": spearman(scores, full)}
    if known:
        truth, lexical = part["truth"].values, controls.bm25_accuracy(part)
        found = "sources" in part  # the first and the last of all that were searched
        between = part.attrs["searched"] - scores.shape[1] if found else 0
        sources = part["sources"].values if found else None
        rows |= {
            "accuracy": retrieval.accuracy(scores, truth),
            "mrr": retrieval.reciprocal_rank(scores, truth, between),
            "recall": retrieval.recall(scores, truth, settings.top_k, between, sources),
            "random": controls.random_accuracy(part),
            "bm25": nothing if lexical is None else lexical,
        }
    return rows


def _retrieval(dataset: xr.Dataset, rows: dict[str, np.ndarray], settings: MetricSettings) -> dict[str, Interval]:
    """Intervals by name over the queries whose sources are known, all on the same resamples; what the store cannot
    give is absent.
    """
    kept = {"accuracy": rows["accuracy"], "mrr": rows["mrr"]}
    if rows["candidates"].max(initial=0) > settings.top_k:  # among k candidates every source is found
        kept["recall"] = rows["recall"]
    honest = rows["accuracy"]
    held_out = held_out_accuracy(dataset, settings)
    if held_out is not None:
        kept["held_out"] = honest = held_out
    if not np.isnan(rows["bm25"]).all():
        lexical = np.nan_to_num(rows["bm25"])  # a block without any score beside others that have some
        kept |= {"bm25": lexical, "minus_bm25": honest - lexical}
    found = bootstrap(np.stack(list(kept.values())), settings, weights(len(honest), settings))
    return dict(zip(kept, found, strict=True))


def _mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN of nothing, without numpy's warning."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
