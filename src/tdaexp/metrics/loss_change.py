"""How exactly a decomposition over checkpoints reproduces the loss changes that it simulated."""

from __future__ import annotations

import xarray as xr


def loss_change(dataset: xr.Dataset) -> dict[str, float]:
    """How exactly the sums reproduce the simulated changes of the held-out loss (in nats per token).

    `loss_change` their mean, `error` the mean and `error_std` the spread of |residual|, `relative_error` the ratio of
    the means of |residual| and |change|, and `relative_error_max` the largest of a single checkpoint.
    """
    residual, change = dataset["residual_norm"].values, dataset["change_norm"].values
    moved = change > 0
    found = {
        "loss_change": -float(dataset["change"].sum("query").mean()),
        "error": float(residual.mean()),
        "error_std": float(residual.std()),
    }
    if moved.any():
        found["relative_error"] = float(residual.mean() / change.mean())
        found["relative_error_max"] = float((residual[moved] / change[moved]).max())
    return found
