"""Do the components that retrieve well also foretell retraining? A study of our own: no paper has asked it.

Of each store of `method=select method.objective=lds`, components are chosen by retrieval and by LDS, and both choices
are judged by both, on queries and models that they did not see (`metrics.choosing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.choosing import (
    ALL,
    PEAK,
    Choice,
    Evidence,
    alone,
    choices,
    ldss,
    orders,
    overlap,
    resampled,
)
from tdaexp.metrics.intervals import Interval, around, bootstrap
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.stores import by_query_set
from tdaexp.papers import base
from tdaexp.papers.base import Analysis
from tdaexp.report.choosing_plots import retrieval_and_lds
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.runtime.errors import UserError
from tdaexp.selection.trials import LDS

BY = ("accuracy", LDS)
CAPTION = (
    "Each component alone: how often it retrieves a source, and how well its summed scores foretell models trained "
    "again. Filled: among the first five that greedy search takes by LDS; red: by accuracy."
)


@dataclass
class Choosing(Analysis):
    """Key: `budgets`, shares of the parameters to stop at beside each objective's peak."""

    budgets: list[float] = field(default_factory=lambda: [0.05, 0.2], metadata={"distinct": True})

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not all(0 < budget < 1 for budget in self.budgets):
            raise UserError(f"analysis.budgets={self.budgets}: must be shares of the parameters, between 0 and 1")

    def run(self, evidence: base.Evidence) -> Findings:
        """Choose, judge, and say what the two have in common."""
        findings, settings = (
            Findings("Do the components that retrieve well also foretell retraining?"),
            evidence.config.metric,
        )
        rows, single = [], []
        for label, store in evidence.labelled().items():
            for name, part in by_query_set(store).items():
                where = f"{label}, {name}"
                one = self._of(part, settings)
                rows += [{"store": label, "queries": name, **row} for row in one.rows]
                single.append((where, one.table))
                findings.metrics |= {f"{where}/{key}": value for key, value in one.metrics.items()}
                findings.statements += [Statement(where, text) for text in one.texts]
                findings.tables[f"components_{len(single)}"] = one.table.assign(store=where)
        findings.tables = {"choices": pd.DataFrame(rows), **findings.tables}
        findings.drawings.append(Drawing("retrieval_and_lds", CAPTION, retrieval_and_lds(single), wide=True))
        return findings

    def _of(self, store: xr.Dataset, settings: MetricSettings) -> _Found:
        known = Evidence.of(store, settings)
        found = choices(known, BY, self.budgets)
        draws = {(one.objective, one.stop): resampled(known, one.foretold) for one in found}
        rows = [_row(known, one, found, draws) for one in found]
        accuracy, foretold, correlation = alone(known)
        by_accuracy, by_lds = orders(known)
        table = pd.DataFrame({"component": known.names, "size": known.sizes, "accuracy": accuracy, "lds": foretold})
        table["rank_by_accuracy"] = [by_accuracy.index(one) for one in known.names]
        table["rank_by_lds"] = [by_lds.index(one) for one in known.names]
        metrics = {"rank_correlation": correlation.value, "rank_correlation_low": correlation.low,
                   "rank_correlation_high": correlation.high}  # fmt: skip
        shared = {
            stop: overlap(*(_find(found, by, stop) for by in BY)) for stop in (PEAK, *map("{:g}".format, self.budgets))
        }
        metrics |= {f"overlap/{stop}": value for stop, value in shared.items()}
        for row in rows:
            where = "/".join(filter(None, (str(row["chosen by"]), str(row["stop"]))))
            metrics |= {f"{where}/{key}": float(str(row[key])) for key in ("lds", "accuracy")}
        texts = [
            f"Over {len(known.names)} components alone, accuracy and LDS correlate by ranks: {_told(correlation)}.",
            "Of the components that the two objectives choose they share "
            + ", ".join(f"{value:.2f} ({stop})" for stop, value in shared.items())
            + " (both / either, mean over folds).",
            *(f"{_compared(rows, stop)} {_apart(known, found, draws, stop)}" for stop in shared),
        ]
        return _Found(rows, table, metrics, texts)


@dataclass(frozen=True)
class _Found:
    rows: list[dict[str, object]]
    table: pd.DataFrame
    metrics: dict[str, float]
    texts: list[str]


def _find(found: list[Choice], objective: str, stop: str) -> Choice:
    return next(one for one in found if one.objective == objective and (one.stop == stop or objective == ALL))


def _row(
    known: Evidence, one: Choice, found: list[Choice], draws: dict[tuple[str, str], np.ndarray]
) -> dict[str, object]:
    """A choice's LDS and accuracy, and what both are more than those of all components."""
    settings, everything = known.settings, _find(found, ALL, "")
    mine, other = (float(ldss(known, each.foretold).mean()) for each in (one, everything))
    own, whole = draws[one.objective, one.stop], draws[ALL, ""]
    pair = [around(mine, own, settings), around(mine - other, own - whole, settings)]
    pair += bootstrap(np.stack([one.found, one.found - everything.found]), settings)
    row: dict[str, object] = {"chosen by": one.objective, "stop": one.stop,
                              "components": float(one.chosen.sum(1).mean()),
                              "share": float((one.chosen @ known.sizes).mean() / known.sizes.sum())}  # fmt: skip
    for name, value in zip(("lds", "lds_minus_all", "accuracy", "accuracy_minus_all"), pair, strict=True):
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return row


def _compared(rows: list[dict[str, object]], stop: str) -> str:
    """One sentence on the choices at a stop."""
    named = {"all": "all components", "accuracy": "chosen by accuracy", LDS: "chosen by LDS"}
    mine = [row for row in rows if row["chosen by"] == ALL or row["stop"] == stop]
    parts = [
        f"{named[str(row['chosen by'])]} LDS {_of_row(row, 'lds')}, accuracy {_of_row(row, 'accuracy')}" for row in mine
    ]
    return f"Held out, at {stop}: " + "; ".join(parts) + "."


def _apart(known: Evidence, found: list[Choice], draws: dict[tuple[str, str], np.ndarray], stop: str) -> str:
    """One sentence on what choosing by retraining gains over choosing by retrieval, on the same queries and models."""
    by_accuracy, by_lds = (_find(found, by, stop) for by in BY)
    gained = ldss(known, by_lds.foretold).mean() - ldss(known, by_accuracy.foretold).mean()
    foretold = around(float(gained), draws[LDS, stop] - draws["accuracy", stop], known.settings)
    retrieved = bootstrap((by_lds.found - by_accuracy.found)[None], known.settings)[0]
    return f"By LDS less by accuracy: LDS {_told(foretold)}, accuracy {_told(retrieved)}."


def _of_row(row: dict[str, object], name: str) -> str:
    return _told(Interval(*(float(str(row[key])) for key in (name, f"{name}_low", f"{name}_high"))))


def _told(one: Interval) -> str:
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"
