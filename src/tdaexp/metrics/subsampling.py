"""How well a decomposition over some steps stands for the whole one (Eichin et al. 2026, appendix G.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.special import log_softmax

from tdaexp.metrics.explaind import accumulated_influence
from tdaexp.runtime.errors import UserError


@dataclass(frozen=True)
class Reconstruction:
    """Sums over some steps against the trained model: `agreement` of classes and `kl` in nats, per query [Q];
    `correlation` (Pearson) of the summed change of the outputs with the true one, and `missing`, the norm of their
    difference over that of the true change, over all queries and outputs.
    """

    agreement: np.ndarray
    kl: np.ndarray
    correlation: float
    missing: float


class StepSums:
    """Contributions by step of a store with the axes step, query and output, all parts summed."""

    def __init__(self, store: xr.Dataset) -> None:
        """Errors (UserError): an axis was summed, or the store is not of logits or log-probabilities."""
        if store.attrs["output"] not in ("logits", "log_probabilities"):
            raise UserError(
                f"influence store: of the output {store.attrs['output']}; classes need method.output=logits"
            )
        axes = ("step", "query", "output")
        parts = [name for name in ("influence", "regularisation", "first_moment") if name in store]
        for axis in axes:
            if axis not in store["influence"].dims:
                raise UserError(
                    f"influence store: the axis {axis} was summed; it needs method.keep=[step,query,output], as python "
                    "attribute.py experiment=explaind_subsampling has"
                )
        summed = [
            accumulated_influence(store, [str(axis) for axis in store[part].dims if axis not in axes], part=part)
            for part in parts
        ]
        self.steps: list[int] = store["step"].values.tolist()
        self.values: np.ndarray = np.sum([one.transpose(*axes).values for one in summed], axis=0)
        self.start, self.change = (store[name].transpose("query", "output").values for name in ("start", "change"))

    def over(self, steps: Sequence[int]) -> Reconstruction:
        """f(θ_0) plus the contributions of these steps, against f(θ_N)."""
        found = self.values[np.isin(self.steps, list(steps))].sum(0)
        end, sums = self.start + self.change, self.start + found
        logs, other = (log_softmax(values, axis=1) for values in (end, sums))
        constant = min(found.std(), self.change.std()) == 0
        return Reconstruction(
            (end.argmax(1) == sums.argmax(1)).astype(np.float64),
            (np.exp(logs) * (logs - other)).sum(1),
            float("nan") if constant else float(np.corrcoef(found.ravel(), self.change.ravel())[0, 1]),
            float(np.linalg.norm(found - self.change) / np.linalg.norm(self.change)),
        )
