"""Cyclic structure of a matrix over pairs of sums: how much of it the difference of two residues alone decides.

Source: ExPLAIND (Eichin et al. 2026), section 5.2, which shows it as pictures; the shares of variance are ours.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import Lasso


def by_difference(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, modulus: int) -> np.ndarray:
    """Mean of values [A, B] over the pairs of each (row − column) mod p: [p], NaN where there is none.

    `rows` [A] and `columns` [B] are the sums; entries that are NaN do not count.
    """
    gap, known = _differences(rows, columns) % modulus, ~np.isnan(values)
    counts = np.bincount(gap[known], minlength=modulus)
    totals = np.bincount(gap[known], weights=values[known], minlength=modulus)
    with np.errstate(invalid="ignore"):
        return totals / counts


def cyclic_share(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, modulus: int) -> float:
    """Share of the variance of values [A, B] that lies between differences mod p; about 0 for noise, 1 at most.

    The adjusted R² of one mean for each difference. NaN where values do not vary.
    """
    known = ~np.isnan(values)
    means = by_difference(values, rows, columns, modulus)[_differences(rows, columns) % modulus][known]
    groups = len(np.unique((_differences(rows, columns) % modulus)[known]))
    return _adjusted(values[known], means, groups)


def band_share(values: np.ndarray) -> float:
    """Share of the variance of values [A, B] that lies between columns: what a column does to all rows alike."""
    known = ~np.isnan(values)
    means = np.broadcast_to(np.nanmean(values, 0), values.shape)
    return _adjusted(values[known], means[known], values.shape[1])


def without_bands(values: np.ndarray) -> np.ndarray:
    """Values less their column's mean."""
    return np.asarray(values - np.nanmean(values, 0))


def of_other_residues(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, modulus: int) -> np.ndarray:
    """Values with NaN for pairs of one residue: they share their answer, so that any model makes them alike."""
    return np.where(_differences(rows, columns) % modulus == 0, np.nan, values)


def harmonics(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, modulus: int) -> np.ndarray:
    """Power [p // 2] of k = 1 … p // 2 cycles within p, as shares of them all, in the means by difference.

    A difference that never occurs counts as the mean of the others.
    """
    means = by_difference(values, rows, columns, modulus)
    means = np.where(np.isnan(means), np.nanmean(means), means)
    power: np.ndarray = np.abs(np.fft.rfft(means - means.mean())[1:]) ** 2
    total = power.sum()
    return power / total if total > 0 else np.full_like(power, np.nan)


def mean_harmonic(power: np.ndarray) -> float:
    """Mean number of cycles, weighted by their power: high for fine patterns, low for broad ones."""
    return float(np.arange(1, len(power) + 1) @ power)


def lasso(similarity: np.ndarray, sums: np.ndarray, periods: np.ndarray, strength: float) -> tuple[pd.DataFrame, float]:
    """Fit a similarity matrix [Q, Q] by cosines and sines of the sums' differences (Table 2 and Figure 12 there).

    Features are cos and sin of 2π Δ / period for every period (theirs: 2 … 113). `strength` is the penalty as a share
    of the smallest that leaves no feature. The diagonal is left out. Returns the coefficients (`period`, `cos`, `sin`),
    largest cosine first, and R².
    """
    upper = np.triu_indices(len(sums), 1)
    angles = 2 * np.pi * _differences(sums, sums)[upper][:, None] / periods
    features, wanted = np.hstack([np.cos(angles), np.sin(angles)]), similarity[upper]
    centred = features - features.mean(0)
    most = np.abs(centred.T @ (wanted - wanted.mean())).max() / len(wanted)
    # a similarity without any variation has nothing to fit; a tiny penalty then gives zeros
    model = Lasso(alpha=max(strength * most, 1e-12), max_iter=20_000).fit(features, wanted)
    table = pd.DataFrame({"period": periods, "cos": model.coef_[: len(periods)], "sin": model.coef_[len(periods) :]})
    table = table.sort_values("cos", key=np.abs, ascending=False, kind="stable").reset_index(drop=True)
    return table, float(model.score(features, wanted))


def fitted(table: pd.DataFrame, sums: np.ndarray) -> np.ndarray:
    """What the coefficients make of every pair of sums [Q, Q], up to a constant."""
    angles = 2 * np.pi * _differences(sums, sums)[:, :, None] / table["period"].to_numpy()
    found: np.ndarray = np.cos(angles) @ table["cos"].to_numpy() + np.sin(angles) @ table["sin"].to_numpy()
    return found


def _differences(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.subtract.outer(np.asarray(rows, dtype=np.int64), np.asarray(columns, dtype=np.int64))


def _adjusted(values: np.ndarray, means: np.ndarray, groups: int) -> float:
    """1 − (variance within groups) / (variance), with their degrees of freedom."""
    total, within = ((values - values.mean()) ** 2).sum(), ((values - means) ** 2).sum()
    if total == 0 or len(values) <= groups:
        return float("nan")
    return float(1 - (within / (len(values) - groups)) / (total / (len(values) - 1)))
