"""Numbers of ExPLAIND's study of grokking (Eichin et al. 2026, section 5.1): when, how much, by which layer.

Series are over steps; Ψ̄ is importance (`metrics.explaind`). A number that a run does not have, because it never
memorised or never generalised, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.signal import find_peaks
from scipy.stats import spearmanr

from tdaexp.metrics.explaind import relative_regularisation

LEARNED = 0.99  # an accuracy that counts as learned
WINDOW = 25  # steps that a series is smoothed over
PROMINENCE = 0.1  # of a series' maximum: lower bumps are no peaks

LAYERS = {
    "embed": "embedding",
    "layers.0.attn.qkv": "att. encoder",
    "layers.0.attn.q": "att. encoder (q)",
    "layers.0.attn.k": "att. encoder (k)",
    "layers.0.attn.v": "att. encoder (v)",
    "layers.0.attn.o": "att. decoder",
    "layers.0.mlp.up": "linear 1",
    "layers.0.mlp.down": "linear 2",
    "lm_head": "decoder",
}
"""The paper's names of the components."""
MIDDLE = ("layers.0.attn.o", "layers.0.mlp.up", "layers.0.mlp.down")


def accuracies(curves: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Train and test accuracy by step, where they were measured."""
    rows = [
        (int(entry["step"]), entry["train/accuracy"], entry["test/accuracy"])
        for entry in curves
        if "test/accuracy" in entry
    ]
    return pd.DataFrame(rows, columns=["step", "train", "test"])


def reached(table: pd.DataFrame, part: str, level: float = LEARNED) -> float:
    """First step from which on the accuracy was measured at `level` or above; NaN: never."""
    found = table["step"][table[part] >= level]
    return float(found.iloc[0]) if len(found) else float("nan")


def phase_numbers(table: pd.DataFrame) -> dict[str, float]:
    """`memorised` and `grokked`: steps at which train and test accuracy are learned; `test_when_memorised`."""
    memorised, grokked = reached(table, "train"), reached(table, "test")
    at = table["test"][table["step"] == memorised]
    return {
        "memorised": memorised,
        "grokked": grokked,
        "test_when_memorised": float(at.iloc[0]) if len(at) else float("nan"),
        "test_at_the_end": float(table["test"].iloc[-1]),
    }


def smooth(values: np.ndarray, width: int = WINDOW) -> np.ndarray:
    """Moving average of the last axis; ends average what there is."""
    width = max(1, min(width, values.shape[-1]))
    kernel = np.ones(width)
    counts = np.convolve(np.ones(values.shape[-1]), kernel, mode="same")
    found: np.ndarray = np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), -1, values)
    return found / counts


def width_of(steps: np.ndarray) -> int:
    """How many entries of a series make `WINDOW` steps, where only a share of the steps was counted."""
    apart = float(np.diff(steps).mean()) if len(steps) > 1 else 1.0
    return max(1, round(WINDOW / apart))


def importance_table(whole: xr.Dataset) -> pd.DataFrame:
    """Ψ̄_s(Θ) of the `kernel` and of the `regularisation` by step."""
    columns = {"kernel": whole["importance"].values, "regularisation": whole["importance_regularisation"].values}
    return pd.DataFrame({"step": whole["step"].values, **columns})


def peaks(values: np.ndarray, width: int = WINDOW) -> np.ndarray:
    """Places of the peaks of a smoothed series, an edge included, with a prominence of `PROMINENCE` of its maximum."""
    smoothed = smooth(values, width)
    padded = np.concatenate([[0.0], smoothed, [0.0]])
    found: np.ndarray = find_peaks(padded, prominence=PROMINENCE * float(smoothed.max()))[0] - 1
    return found


def balance_numbers(whole: xr.Dataset, phases: dict[str, float]) -> dict[str, float]:
    """Kernel against regularisation, of a store with the axis step alone (Ψ̄_s(Θ) and Ψ̄^reg_s(Θ))."""
    steps = whole["step"].values
    kernel, decay = (
        smooth(whole[name].values, width_of(steps)) for name in ("importance", "importance_regularisation")
    )
    top, bottom = int(kernel.argmax()), int(decay.argmax())
    rise = slice(0, max(top, bottom) + 1)
    return {
        "kernel_peak": float(steps[top]),
        "regularisation_peak": float(steps[bottom]),
        "rise_correlation": float(spearmanr(kernel[rise], decay[rise])[0]) if len(kernel[rise]) > 2 else float("nan"),
        "kernel_end": float(kernel[-1] / kernel[top]),
        "regularisation_end": float(decay[-1] / decay[bottom]),
        "balance_memorising": _mean_ratio(decay, kernel, steps <= phases["memorised"]),
        "balance_grokked": _mean_ratio(decay, kernel, steps >= phases["grokked"]),
    }


def layer_numbers(layers: xr.Dataset, phases: dict[str, float]) -> dict[str, float]:
    """Importance of layers by phase, of a store with the axes step and component."""
    steps, names = layers["step"].values, [str(name) for name in layers["component"].values]
    width = width_of(steps)
    values = smooth(layers["importance"].transpose("component", "step").values, width)
    early, late = steps <= phases["memorised"], steps >= phases["grokked"]
    found: dict[str, float] = {}
    for name, row in zip(names, values, strict=True):
        found[f"peak/{name}"] = float(steps[row.argmax()])
        found[f"share_memorising/{name}"] = _share(row, values, early)
        found[f"share_grokked/{name}"] = _share(row, values, late)
        found[f"growth_grokked/{name}"] = float(row[-1] / row[late][0]) if late.any() else float("nan")
    decay = layers["importance_regularisation"].transpose("component", "step").values
    for name, row in zip(names, decay, strict=True):
        found[f"share_regularisation/{name}"] = float(row.sum() / decay.sum())
    summed: list[str] = [axis for axis in ("query", "output") if axis in layers["influence"].dims]
    difference = relative_regularisation(layers, summed).transpose("component", "step").values
    for name, row in zip(names, np.abs(smooth(difference, width)), strict=True):
        found[f"difference_peak/{name}"] = float(steps[row.argmax()])
        found[f"difference_memorising/{name}"] = float(row[early].mean()) if early.any() else float("nan")
    if "lm_head" in names:
        own = steps[peaks(layers["importance"].sel(component="lm_head").values, width)]
        found |= {"decoder_peaks": float(len(own)), "decoder_last_peak": float(own[-1]) if len(own) else float("nan")}
    return found


def _mean_ratio(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> float:
    return float(above[where].mean() / below[where].mean()) if where.any() else float("nan")


def _share(row: np.ndarray, rows: np.ndarray, where: np.ndarray) -> float:
    return float(row[where].sum() / rows[:, where].sum()) if where.any() else float("nan")
