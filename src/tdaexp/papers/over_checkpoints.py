"""Does the subset stay? The components that *Select or Project?* chooses, over the checkpoints of one training.

The paper looks at a final checkpoint and leaves this open (its Limitations). Reads a run of `method=full` (or another
that keeps products by component) at each checkpoint, and says by step what a choice there has in common with one at the
end, and what it is worth there (`metrics.over_checkpoints`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.intervals import Interval, bootstrap
from tdaexp.metrics.over_checkpoints import AtCheckpoint, over_checkpoints
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.over_checkpoints_plots import over_steps
from tdaexp.runtime.errors import UserError
from tdaexp.training.checkpoint_list import step_in

NEED = (
    "runs: needs two or more stores of one model at different checkpoints; make them by python attribute.py "
    "method=full model.pretrained=CHECKPOINT, with a folder of trainer.fit.keep=all each"
)
CAPTION = (
    "Left: retrieval accuracy on queries that were not chosen by. Right: what a choice has in common with the last "
    "checkpoint's; the dotted line is what choices on two halves of the queries have in common at one checkpoint."
)


@dataclass
class OverCheckpoints(Analysis):
    """Key: `budget`, the share of the parameters that is chosen (null: to the peak of greedy search)."""

    budget: float | None = 0.05

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(f"analysis.budget={self.budget}: must be above 0 and at most 1, or null for the peak")

    def run(self, evidence: Evidence) -> Findings:
        """Judge the choice at each checkpoint, in each query set that two or more stores have."""
        steps = _by_step(evidence.stores)
        findings = Findings("Do the chosen components stay while the model is trained?")
        sets: dict[str, dict[int, xr.Dataset]] = {}
        for step in sorted(steps):
            for name, part in by_query_set(steps[step]).items():
                sets.setdefault(name, {})[step] = part
        tables = {}
        for name, parts in sets.items():
            if len(parts) < 2:
                raise UserError(f"{NEED}; of the '{name}' queries there is one store")
            judged = over_checkpoints(list(parts.values()), self.budget, evidence.config.metric)
            table = _table(list(parts), judged, next(iter(parts.values())), evidence.config.metric)
            tables[name] = table
            findings.tables[f"over_checkpoints_{name}"] = table
            findings.metrics |= {
                f"{name}/{key}/{row['step']}": float(row[key]) for row in table.to_dict("records") for key in KEYS
            }
            findings.statements.append(Statement(f"{name} queries", _said(table)))
        findings.drawings.append(Drawing("over_checkpoints", CAPTION, over_steps(tables), wide=True))
        return findings


KEYS = ("overlap", "halves", "rank", "full", "here", "at_last")


def _by_step(stores: Sequence[xr.Dataset]) -> dict[int, xr.Dataset]:
    """The stores by the step of their checkpoint, the last number in its folder's name.

    Errors (UserError): fewer than two; no number; a step twice; folders that do not lie beside each other.
    """
    found: dict[int, xr.Dataset] = {}
    trainings: set[Path] = set()
    for store in stores:
        folder = ((store.attrs.get("config") or {}).get("model") or {}).get("pretrained")
        step = step_in(str(folder)) if folder else None
        if folder is None or step is None:
            raise UserError(f"{NEED}; a folder's name ends in its step (step-100), and one is {folder}")
        if step in found:
            raise UserError(f"runs: two runs are of step {step}; name one for each checkpoint")
        found[step] = store
        trainings.add(Path(folder).absolute().parent)
    if len(found) < 2:
        raise UserError(NEED)
    if len(trainings) > 1:
        named = ", ".join(sorted(map(str, trainings)))
        raise UserError(f"runs: checkpoints of several trainings ({named}); name runs of those of one")
    return found


def _table(steps: list[int], judged: list[AtCheckpoint], store: xr.Dataset, settings: MetricSettings) -> pd.DataFrame:
    names, sizes = store["component"].values, store["size"].values
    rows = []
    for step, one in zip(steps, judged, strict=True):
        row = {"step": step, "chosen": int(one.chosen.sum()), "share": float(sizes[one.chosen].sum() / sizes.sum()),
               "overlap": one.overlap, "halves": one.halves, "rank": one.rank}  # fmt: skip
        for key, value in zip(KEYS[3:], bootstrap(np.stack([one.full, one.here, one.at_last]), settings), strict=True):
            row |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
        rows.append(row | {"components": " ".join(str(name) for name in names[one.chosen])})
    return pd.DataFrame(rows)


def _said(table: pd.DataFrame) -> str:
    first, last = table.iloc[0], table.iloc[-1]
    return (
        f"The components chosen at step {first['step']} and at the last, {last['step']}, have an overlap of "
        f"{first['overlap']:.2f} (two halves of the queries at the last: {last['halves']:.2f}); accuracies of single "
        f"components correlate by {first['rank']:.2f}. At the last checkpoint, held out, those chosen at step "
        f"{first['step']} retrieve {_told(first, 'at_last')}, those chosen there {_told(last, 'at_last')}, all "
        f"components {_told(last, 'full')}."
    )


def _told(row: pd.Series, key: str) -> str:
    one = Interval(row[key], row[f"{key}_low"], row[f"{key}_high"])
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
