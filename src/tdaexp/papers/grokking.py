"""ExPLAIND's case study of grokking (Eichin et al. 2026, section 5): Figures 3, 4, 5 and 9 to 13, and Table 2.

Reads the stores of `experiment=explaind_grokking` and `explaind_grokking_windows`, swaps layers, trains new models from
grafts, and says which of the paper's findings this run reproduces. An influence here is on the output that the stores
have: of the windows, the target's logit, where the paper sums over all outputs. Sim is the cosine of two queries'
influences over training examples, summed over the window's steps and the layer's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import xarray as xr

from tdaexp.metrics.explaind import reconstruction
from tdaexp.papers import cyclic, geometry_claims, graft_claims, grafting, grokking_claims, grokking_windows
from tdaexp.papers import grokking_numbers as grokking
from tdaexp.papers import grokking_plots as plots
from tdaexp.papers.balance_plots import balance
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.papers.grokking_windows_plots import influence_drawings, similarity_drawings
from tdaexp.papers.plotted_balance import plotted_balance, plotted_numbers
from tdaexp.papers.transplant import parameters_of, rests
from tdaexp.papers.verdicts import stated
from tdaexp.report.findings import Drawing, Findings
from tdaexp.runtime.errors import UserError, unknown

MADE = "python attribute.py experiment=explaind_grokking, and experiment=explaind_grokking_windows"

PARTS = ("course", "windows", "swaps", "grafts")


@dataclass
class Grokking(Analysis):
    """Keys: `parts` of the study; `grafts` name to components that are kept of the trained model; `pipelines` those
    that bring generalisation by the paper, the main one first, and `outer` that of the outer layers; `donors` steps
    whose weights new trainings take, the final one first; `seeds` and `steps` of the new trainings, and `fresh`, the
    standard deviation of their other weights (null = as the model begins); `swap_every` steps a checkpoint gets the
    final layers; `balance_every` steps kernel and regularisation are taken as the paper's plot draws them, of
    `balance_queries` test examples; `lasso` the component whose similarity the Lasso fits, and `strength` its penalty
    as a share of the least that leaves nothing.
    """

    needs_task: ClassVar[bool] = True

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"distinct": True})
    grafts: dict[str, list[str]] = field(default_factory=dict)
    pipelines: list[str] = field(default_factory=list, metadata={"distinct": True})
    outer: str = ""
    donors: list[int] = field(default_factory=list, metadata={"distinct": True})
    seeds: int = 2
    steps: int = 200
    fresh: float | None = None
    swap_every: int = 50
    balance_every: int = 50
    balance_queries: int = 50
    lasso: str = "layers.0.mlp.down"
    strength: float = 0.1

    def __post_init__(self) -> None:
        """Refuse grafts that are none, and nothing to compare the outer one with."""
        for part in self.parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS, "analysis.parts")
        if self.outer not in self.grafts or len(self.grafts) < 2:
            raise UserError(f"analysis.outer='{self.outer}': must be one of at least two analysis.grafts")
        if not self.pipelines:
            raise UserError("analysis.pipelines=[]: must name at least one of analysis.grafts")
        for name in self.pipelines:
            if name not in self.grafts:
                raise unknown("graft", name, list(self.grafts), "analysis.pipelines")
        for key in ("seeds", "steps", "swap_every", "balance_every", "balance_queries"):
            if getattr(self, key) < 1:
                raise UserError(f"analysis.{key}={getattr(self, key)}: must be at least 1")
        if self.fresh is not None and not self.fresh > 0:
            raise UserError(f"analysis.fresh={self.fresh}: must be above 0, or null for the model's own start")
        if not self.donors or not 0 < self.strength < 1:
            raise UserError("analysis: donors must name a step, and strength lie between 0 and 1")

    def run(self, evidence: Evidence) -> Findings:
        """Numbers, tables, figures and statements."""
        if not hasattr(evidence.config.dataset, "modulus"):
            raise UserError("analysis=grokking: reads sums modulo a number; give dataset=modular_addition")
        findings = Findings("Grokking: which layers, when, and around what geometry")
        claims = []
        layers, whole, windows = self._stores(evidence)
        self._check(evidence, [store for store in (layers, whole, *windows.values()) if store is not None])
        if layers is not None and whole is not None:
            self._course(evidence, layers, whole, findings)
            claims += grokking_claims.CLAIMS
        if windows:
            self._geometry(evidence, windows, findings)
            claims += geometry_claims.CLAIMS
        if "swaps" in self.parts:
            grafting.swaps(self, evidence, findings)
        if "grafts" in self.parts:
            grafting.grafts(self, evidence, findings)
        rest = rests(self.grafts)
        claims += graft_claims.claims_of(self.outer, self.pipelines, self.donors, rest)
        findings.statements += stated(claims, findings.metrics)
        return findings

    def _stores(self, evidence: Evidence) -> tuple[xr.Dataset | None, xr.Dataset | None, dict[str, xr.Dataset]]:
        """Of layers and steps, of steps alone, and the windows, as far as `parts` needs them. Errors (UserError)."""
        layers = whole = None
        windows: dict[str, xr.Dataset] = {}
        if "course" in self.parts:
            layers = evidence.find(keep=["component", "step"], need=f"step and component kept; {MADE}")
            whole = evidence.find(keep=["step"], need=f"step alone kept; {MADE}")
        if "windows" in self.parts:
            windows = grokking_windows.windows(evidence.stores)
            if not windows:
                raise UserError(f"runs: no store has train, query and component kept; {MADE}")
        return layers, whole, windows

    def _check(self, evidence: Evidence, stores: list[xr.Dataset]) -> None:
        """Refuse stores of another training, and donors that it does not have. Errors (UserError)."""
        total = evidence.task.trajectory.settings.total
        for name in self.grafts:
            parameters_of(evidence.task, name, self.grafts[name])
        for donor in self.donors:
            evidence.task.trajectory.parameters(donor)
        known = {*evidence.task.corpus.test.ids, *evidence.task.corpus.train.ids}
        for store in stores:
            if int(store["step"].max()) >= total or not set(map(str, store["query"].values)) <= known:
                raise UserError(
                    "runs: a store is of another training than the configured one; give evaluate.py the same model, "
                    "dataset and trainer options as attribute.py had"
                )

    def _course(self, evidence: Evidence, layers: xr.Dataset, whole: xr.Dataset, findings: Findings) -> None:
        curves = grokking.accuracies(evidence.task.note["curves"])
        phases = grokking.phase_numbers(curves)
        findings.metrics |= reconstruction(layers) | phases | {"last_step": float(whole["step"].max())}
        findings.metrics |= grokking.balance_numbers(whole, phases) | grokking.layer_numbers(layers, phases)
        findings.tables |= {"accuracy": curves, "importance": grokking.importance_table(whole)}
        self._balance(evidence, phases["memorised"], findings)
        marks = {"memorised": phases["memorised"], "grokked": phases["grokked"]}
        caption = (
            "Figure 3a: accuracy; importance (absolute contributions to the logits, summed over queries and outputs) "
            "of kernel and regularisation; importance and relative regularisation D by layer. Averages over "
            f"{grokking.WINDOW} steps; {layers.sizes['query']} queries."
        )
        findings.drawings.append(Drawing("training", caption, plots.training(curves, layers, whole, marks), wide=True))

    def _balance(self, evidence: Evidence, memorised: float, findings: Findings) -> None:
        task = evidence.task
        queries = task.corpus.test.select(range(min(self.balance_queries, len(task.corpus.test))))
        steps = range(0, task.trajectory.settings.total, self.balance_every)
        table = plotted_balance(task, queries, steps, evidence.config.model.heads)
        findings.tables["balance"] = table
        findings.metrics |= plotted_numbers(table, memorised)
        caption = (
            f"Kernel against regularisation as the paper's plot draws it, every {self.balance_every} steps, and the "
            "same over all of a layer's parameters. Below zero regularisation acts more."
        )
        findings.drawings.append(Drawing("balance", caption, balance(table), wide=True))

    def _geometry(self, evidence: Evidence, windows: dict[str, xr.Dataset], findings: Findings) -> None:
        corpus, modulus = evidence.task.corpus, int(evidence.config.dataset.modulus)
        sums = {
            name: int(value)
            for part in (corpus.train, corpus.test)
            for name, value in zip(part.ids, part.meta["sum"], strict=True)
        }
        table = grokking_windows.window_table(windows, sums, modulus)
        findings.tables["windows"] = table
        findings.metrics |= grokking_windows.window_numbers(table)
        findings.drawings += influence_drawings(windows, sums, modulus)
        findings.drawings += similarity_drawings(windows, sums, modulus)
        self._waves(list(windows.items())[-1], sums, modulus, findings)

    def _waves(self, last: tuple[str, xr.Dataset], sums: dict[str, int], modulus: int, findings: Findings) -> None:
        """Table 2 and Figure 12, and the same with waves that close around the modulus."""
        name, whole = last
        store = grokking_windows.of_queries(whole, str(whole["query_set"].values[0]))
        asked = np.array([sums[str(one)] for one in store["query"].values])
        found = grokking_windows.similarity_of(store, self.lasso)
        fits = {
            "lasso": cyclic.lasso(found, asked, np.arange(2.0, modulus + 1), self.strength),
            "waves": cyclic.lasso(found, asked, modulus / np.arange(1, modulus // 2 + 1), self.strength),
        }
        for key, (table, r2) in fits.items():
            kept = table[(table["cos"] != 0) | (table["sin"] != 0)].copy()
            kept["cycles"] = modulus / kept["period"]
            findings.tables[key] = kept
            findings.metrics[f"{key}_r2"] = r2
            model, shown, _ = plots.ordered(cyclic.fitted(table, asked), asked, asked, modulus)
            sorted_, _, _ = plots.ordered(found, asked, asked, modulus)
            features = "all whole periods" if key == "lasso" else "whole numbers of cycles within the modulus"
            caption = (
                f"Figure 12, by {features}: similarity of {grokking.LAYERS.get(self.lasso, self.lasso)} in {name}, "
                f"what the Lasso predicts (R² {r2:.2f}), and its coefficients. Queries sorted by residue."
            )
            findings.drawings.append(
                Drawing(key, caption, plots.lasso(sorted_, model, shown, kept, modulus), wide=True)
            )
        table = fits["lasso"][0]
        own = table.loc[table["period"] == modulus, "cos"]
        findings.metrics |= {
            "lasso_modulus": float(modulus),
            "lasso_period": float(table["period"].iloc[0]),
            "lasso_coefficient": float(table["cos"].iloc[0]),
            "lasso_modulus_coefficient": float(own.iloc[0]),
            "waves_count": float((fits["waves"][0]["cos"] != 0).sum()),
            "waves_cycles": float(modulus / fits["waves"][0]["period"].iloc[0]),
        }
