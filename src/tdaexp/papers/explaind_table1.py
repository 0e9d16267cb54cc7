"""How exactly sums over the path reproduce the models, by rule and nodes per step (ExPLAIND's table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import xarray as xr

from tdaexp.metrics.explaind import reconstruction
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.quadrature_plots import quadrature_curves
from tdaexp.runtime.errors import UserError


@dataclass
class ExplaindTable1(Analysis):
    """Keys: `evaluations` per step, on average, that a claim is made of; `kl` in nats, below which sums are exact."""

    evaluations: float = 2.0
    kl: float = 1e-5

    def run(self, evidence: Evidence) -> Findings:
        """One row for each store of logits or log-probabilities. Errors (UserError): there is none."""
        rows = [_row(store) for store in evidence.stores if _judged(store)]
        if not rows:
            raise UserError(
                "runs: no store decomposes logits or log-probabilities; run python attribute.py "
                "experiment=explaind_table1 and give its folder"
            )
        table = pd.DataFrame(rows).sort_values(["model", "steered", "rule", "evaluations"], ignore_index=True)
        caption = (
            "KL of the summed decomposition from the model against evaluations of the gradient per step. Rings: nodes "
            "steered by the residual. The rule secant also takes values at both ends of a step. "
            f"The dotted line is at two. {_sizes(evidence.stores)}"
        )
        metrics = {
            f"table1/{row['model']}/{row['rule']}/{row['nodes']}/{key}": float(row[key])
            for row in table.to_dict("records")
            for key in ("agreement", "kl", "evaluations")
        }
        drawing = Drawing("table1", caption, quadrature_curves(table), wide=True)
        return Findings("Exactness of the path kernel", metrics, {"table1": table}, [drawing], self._statements(table))

    def _statements(self, table: pd.DataFrame) -> list[Statement]:
        found = []
        for model, part in table.groupby("model", sort=False):
            claim = f"{model}: agreement 1.000 and KL near 0 with at most {self.evaluations:g} evaluations per step"
            cheap = part[part["evaluations"] <= self.evaluations]
            if not len(cheap):
                found.append(Statement(claim, "No run took so few.", "open"))
                continue
            best = cheap.sort_values(["agreement", "kl"], ascending=[False, True]).iloc[0]
            good = best["agreement"] == 1 and best["kl"] < self.kl
            text = (
                f"Agreement {best['agreement']:.4f} and KL {best['kl']:.2g} with {best['evaluations']:.2f} evaluations "
                f"per step ({best['rule']}, nodes {best['nodes']}); the paper has 1.0 and 0.0 with 100."
            )
            found.append(Statement(claim, text, "good" if good else "bad"))
        return found


def _judged(store: xr.Dataset) -> bool:
    return store.attrs.get("method") == "explaind" and store.attrs.get("output") in ("logits", "log_probabilities")


def _row(store: xr.Dataset) -> dict[str, Any]:
    config = store.attrs["config"]
    quadrature = config["method"]["quadrature"]
    tolerance = quadrature["tolerance"]
    nodes = str(quadrature["nodes"])
    row: dict[str, Any] = {
        "model": config["model"]["name"],
        "rule": store.attrs.get("rule", quadrature["rule"]),
        "nodes": nodes if tolerance is None else f"{nodes} to {quadrature['most']} at {tolerance:g}",
        "steered": tolerance is not None,
        "evaluations": float(store["nodes"].mean()),
    }
    return row | reconstruction(store)


def _sizes(stores: list[xr.Dataset]) -> str:
    known = {
        store.attrs["config"]["model"]["name"]: f"{store.sizes['step']} steps and {store.sizes['query']} queries"
        for store in stores
        if _judged(store)
    }
    return "; ".join(f"{name}: {text}" for name, text in known.items()) + "."
