"""Do the components that retrieve well also foretell retraining? Choices by each objective, judged by both, held out.

A store of `method=select method.objective=lds` has all that this takes: products by component, sources, and what models
trained again measured. Every prediction that is judged comes from a choice that saw neither its query nor its models:
queries are cut into folds and models into halves, and for each of both components are chosen on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.metrics.intervals import Interval, around
from tdaexp.metrics.rank_correlation import spearman
from tdaexp.metrics.resampled_ranks import weighted_spearman
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError
from tdaexp.selection.greedy import admitted, cut, order_components
from tdaexp.selection.subsets import Products, products_of, retrieved
from tdaexp.selection.trials import LDS, varying

ALL = "all"
PEAK = "peak"
"""Instead of a budget: stop where the objective is highest on what was chosen by."""
HALVES = 2


@dataclass(frozen=True)
class Choice:
    """Components chosen by an objective up to a `stop` (a budget, or the peak), held out.

    `foretold` [S, Q] is each query's summed scores over each model's members, `found` [Q] its retrieval (a mean over
    halves), `chosen` [cells, K] bool which components the cells of folds and halves chose.
    """

    objective: str
    stop: str
    foretold: np.ndarray
    found: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """Products with trials, sizes [K] and names of the components, and the halves [S] that the models are cut into."""

    products: Products
    sizes: np.ndarray
    names: list[str]
    half: np.ndarray
    settings: MetricSettings

    @classmethod
    def of(cls, store: xr.Dataset, settings: MetricSettings) -> Evidence:
        """Of one query set of a store, as far as its queries' sources are known and their measurements vary.

        Errors (UserError): the store was not chosen by retraining, or no such query is left.
        """
        if "retrained" not in store:
            raise UserError("runs: the store does not say what models trained again measured; run attribute.py "
                            "method=select method.objective=lds")  # fmt: skip
        known = varying(influence.with_truth(store))
        products = products_of(known)
        half = np.random.default_rng(settings.seed).permutation(np.arange(known.sizes["subset"]) % HALVES)
        return cls(products, known["size"].values, [str(name) for name in known["component"].values], half, settings)

    @property
    def outputs(self) -> np.ndarray:
        """What was measured [S, Q]."""
        assert self.products.trials is not None
        return self.products.trials.outputs


def choices(evidence: Evidence, objectives: Sequence[str], budgets: Sequence[float]) -> list[Choice]:
    """Each objective at its peak and at each budget, and all components."""
    found = [_everything(evidence)]
    for objective in objectives:
        stops: list[str | float] = [PEAK, *budgets]
        found += [_held_out(evidence, objective, stop) for stop in stops]
    return found


def _everything(evidence: Evidence) -> Choice:
    places = np.arange(len(evidence.sizes))
    foretold, found = _judged(evidence.products, places)
    return Choice(ALL, "", foretold, found.astype(float), np.ones((1, len(places)), bool))


def _held_out(evidence: Evidence, objective: str, stop: str | float) -> Choice:
    count, trials = evidence.products.dot.shape[-1], len(evidence.half)
    foretold, found = np.empty((trials, count)), np.zeros(count)
    chosen: list[np.ndarray] = []
    for fold, half in _cells(evidence):
        seen = evidence.products.rows(~fold).judged_by(~half)
        order, path = order_components(seen, objective, _among(evidence, stop))
        picked = order[: int(path.argmax()) + 1] if isinstance(stop, str) else cut(order, evidence.sizes, stop)
        sums, hits = _judged(evidence.products.rows(fold), picked)
        foretold[np.ix_(half, fold)] = sums[half]
        found[fold] += hits / HALVES
        chosen.append(np.isin(np.arange(len(evidence.sizes)), picked))
    return Choice(objective, stop if isinstance(stop, str) else f"{stop:g}", foretold, found, np.array(chosen))


def _among(evidence: Evidence, stop: str | float) -> np.ndarray | None:
    return None if isinstance(stop, str) else admitted(evidence.sizes, stop)


def _cells(evidence: Evidence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of the queries [Q] and of the models [S] that a choice does not see."""
    count = evidence.products.dot.shape[-1]
    folds = min(evidence.settings.folds, count)
    if folds < 2:
        raise UserError("analysis=choosing: one query with a known source leaves none to choose by; ask more")
    fold = np.random.default_rng(evidence.settings.seed).permutation(np.arange(count) % folds)
    for number in range(folds):
        for half in range(HALVES):
            yield fold == number, evidence.half == half


def _judged(products: Products, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A subset's summed scores over each model's members [S, Q], and which queries it retrieves [Q]."""
    assert products.trials is not None
    scores = products.of_subset(chosen)
    return products.trials.members.astype(np.float64) @ scores, retrieved(scores, products.source, products.rival)


def ldss(evidence: Evidence, foretold: np.ndarray) -> np.ndarray:
    """LDS [Q] of predictions [S, Q]: mean over halves of the correlation within each; 0 where nothing is foretold."""
    rows = [spearman(foretold[mine].T, evidence.outputs[mine].T) for mine in _halves(evidence)]
    return np.asarray(np.nan_to_num(np.array(rows)).mean(0))


def resampled(evidence: Evidence, foretold: np.ndarray) -> np.ndarray:
    """Mean LDS [R] over resamples of queries and, within each half, of models: the same ones for all predictions."""
    rng, settings = np.random.default_rng(evidence.settings.seed), evidence.settings
    queries = foretold.shape[1]
    picked = rng.multinomial(queries, np.full(queries, 1 / queries), settings.bootstrap)
    total = np.zeros(settings.bootstrap)
    for mine in _halves(evidence):
        trials = int(mine.sum())
        weights = rng.multinomial(trials, np.full(trials, 1 / trials), settings.bootstrap).T.astype(np.float32)
        for query in range(queries):
            rho = weighted_spearman(foretold[mine, query], evidence.outputs[mine, query], weights)
            total += np.nan_to_num(rho) * picked[:, query] / (queries * HALVES)
    return total


def _halves(evidence: Evidence) -> list[np.ndarray]:
    return [evidence.half == half for half in range(HALVES)]


def alone(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, Interval]:
    """Each component alone: its accuracy [K] and LDS [K], and Spearman's correlation of the two over components, with
    an interval over queries and models.
    """
    products, settings = evidence.products, evidence.settings
    accuracy = products.single("accuracy").astype(float)
    sums = [_judged(products, np.array([k]))[0] for k in range(len(evidence.sizes))]
    draws = np.stack([resampled(evidence, one) for one in sums])  # [K, R]
    count = accuracy.shape[1]
    picked = np.random.default_rng(settings.seed).multinomial(count, np.full(count, 1 / count), settings.bootstrap)
    ranks = spearman((accuracy @ picked.T / count).T, draws.T)  # the same resamples of queries as `resampled` has
    means, foretold = accuracy.mean(1), np.array([ldss(evidence, one).mean() for one in sums])
    both = float(spearman(means[None], foretold[None])[0])
    return means, foretold, around(both, np.nan_to_num(ranks), settings)


def overlap(one: Choice, other: Choice) -> float:
    """Mean over cells of what two choices share: |both| / |either|."""
    return float(((one.chosen & other.chosen).sum(1) / (one.chosen | other.chosen).sum(1)).mean())


def orders(evidence: Evidence) -> tuple[list[str], list[str]]:
    """The components in the order in which each objective takes them, on all queries and models: accuracy, LDS."""
    first, second = (order_components(evidence.products, one)[0] for one in ("accuracy", LDS))
    return [evidence.names[k] for k in first], [evidence.names[k] for k in second]
