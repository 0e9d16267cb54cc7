"""Numbers of layer swaps and of retrainings from grafts (ExPLAIND, Figures 3b, 10 and 11)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tdaexp.papers.grokking_numbers import LEARNED


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with a graft less the checkpoint's own: columns `step`, `graft`, `gain`."""
    plain = table[table["graft"] == "none"].set_index("step")["accuracy"]
    found = table[table["graft"] != "none"].copy()
    found["gain"] = found["accuracy"] - plain.loc[found["step"]].to_numpy()
    return found[["step", "graft", "gain"]]


def swap_numbers(table: pd.DataFrame) -> dict[str, float]:
    """`swap_best/…` and `swap_mean/…` by graft: largest and mean gain over checkpoints; `swap_step/…` of the best."""
    found: dict[str, float] = {}
    for graft, part in gains(table).groupby("graft", sort=False):
        best = part.loc[part["gain"].idxmax()]
        found |= {f"swap_best/{graft}": float(best["gain"]), f"swap_mean/{graft}": float(part["gain"].mean())}
        found[f"swap_step/{graft}"] = float(best["step"])
    return found


def best_hosts(table: pd.DataFrame, graft: str, count: int, apart: int) -> list[int]:
    """The checkpoints that gain most from a graft, at least `apart` steps from each other, in the order of time."""
    own = gains(table)
    own = own[own["graft"] == graft].sort_values("gain", ascending=False, kind="stable")
    chosen: list[int] = []
    for step in map(int, own["step"]):
        if len(chosen) < count and all(abs(step - other) >= apart for other in chosen):
            chosen.append(step)
    return sorted(chosen)


def systematic_error(counts: np.ndarray) -> float:
    """Share of all answers that miss by one and the same residue, the most frequent one: counts [right, answer]."""
    modulus = len(counts)
    gap = np.subtract.outer(np.arange(modulus), np.arange(modulus)) % modulus
    missed = np.bincount(gap.ravel(), weights=counts.ravel(), minlength=modulus)[1:]
    return float(missed.max() / counts.sum())


def retraining_numbers(table: pd.DataFrame) -> dict[str, float]:
    """By graft and donor step, means over seeds: `retrained_end/…` test accuracy at the end, `retrained_step/…` when
    the mean test accuracy first is learned (NaN: never), `retrained_lag/…` the largest gap train − test on the way.
    """
    found: dict[str, float] = {}
    for (graft, donor), part in table.groupby(["graft", "donor"], sort=False):
        mean = part.groupby("step")[["train", "test"]].mean()
        learned = mean.index[mean["test"] >= LEARNED]
        name = f"{graft}/{donor}"
        found[f"retrained_end/{name}"] = float(mean["test"].iloc[-1])
        found[f"retrained_step/{name}"] = float(learned[0]) if len(learned) else float("nan")
        found[f"retrained_lag/{name}"] = float((mean["train"] - mean["test"]).max())
    return found
