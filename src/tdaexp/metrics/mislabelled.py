"""Mislabelled examples: does self-influence put the rows first that are known to be faulty?

Source: Koh and Liang 2017, section 5.4; Pruthi et al. 2020, section 4.1. A row that only its own gradient explains
supports itself more than others do. Two numbers for each run with self-influence: the area under the ROC curve, which
is the probability that a faulty row has more of it than a sound one (0.5 is chance), and the share of the faulty rows
among the first so many, by falling self-influence. The controls are the row's loss under the explained model, and
chance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from tdaexp.metrics.as_it_is import AsItIs, losses_of
from tdaexp.metrics.intervals import Interval
from tdaexp.metrics.retrained import RANDOM, Judged
from tdaexp.metrics.settings import MetricSettings
from tdaexp.runtime.errors import UserError

TRAIN = "train"
"""Stands where a query set does: what is judged here are the training rows."""
LOSS = "loss of the row"


def judge_mislabelled(evidence: AsItIs, scores: Mapping[str, np.ndarray]) -> list[Judged]:
    """AUC and the share found of each run's self-influence; its `scores` of pairs are not looked at.

    Errors (UserError): no row is known to be faulty, or none to be sound; no run has self-influence.
    """
    settings, faulty = evidence.settings.mislabelled, evidence.faulty
    assert settings is not None
    if faulty is None or not faulty.any() or faulty.all():
        raise UserError(
            "metric.mislabelled: no training row is known to be faulty; flip some labels (dataset.flipped=0.1, of "
            "classification tasks), or take dataset=instructions, some of whose rows are tampered with"
        )
    if not evidence.itself:
        raise UserError(
            "metric.mislabelled: no run has self-influence; run attribute.py again with self_influence=true"
        )
    chance = np.random.default_rng([evidence.settings.seed, len(faulty)]).random(len(faulty))
    found = []
    for label, values in {**evidence.itself, LOSS: losses_of(evidence.problem), RANDOM: chance}.items():
        area, first = found_intervals(values, faulty, settings.looked_at, evidence.settings)
        found.append(Judged(label, TRAIN, "mislabelled_auc", area, int(faulty.sum())))
        found.append(Judged(label, TRAIN, "mislabelled_found", first, int(faulty.sum())))
    return found


def auc(values: np.ndarray, faulty: np.ndarray) -> float:
    """Probability that a faulty row's value is above a sound one's; a tie counts half."""
    ranks, positive = rankdata(values), int(faulty.sum())
    return float((ranks[faulty].sum() - positive * (positive + 1) / 2) / (positive * (len(values) - positive)))


def share_found(values: np.ndarray, faulty: np.ndarray, looked_at: float) -> float:
    """Share of the faulty rows among the first round(looked_at · N), at least one, by falling value; ties by row."""
    first = np.argsort(-values, kind="stable")[: max(1, round(looked_at * len(values)))]
    return float(faulty[first].sum() / faulty.sum())


def found_intervals(
    values: np.ndarray, faulty: np.ndarray, looked_at: float, settings: MetricSettings
) -> tuple[Interval, Interval]:
    """Both numbers with percentile intervals: faulty and sound rows are resampled, each by themselves."""
    rng, (bad, good) = np.random.default_rng(settings.seed), (np.flatnonzero(faulty), np.flatnonzero(~faulty))
    resampled = np.empty((settings.bootstrap, 2))
    for place in range(settings.bootstrap):
        rows = np.sort(np.concatenate([rng.choice(bad, len(bad)), rng.choice(good, len(good))]))  # ties by row
        own = values[rows], faulty[rows]
        resampled[place] = auc(*own), share_found(*own, looked_at)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    told = auc(values, faulty), share_found(values, faulty, looked_at)
    area, first = (Interval(*map(float, one)) for one in zip(told, low, high, strict=True))
    return area, first
