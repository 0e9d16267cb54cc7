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
import pandas as pd
import xarray as xr

from tdaexp.metrics.explaind import reconstruction
from tdaexp.papers import cyclic, graft_claims, grokking_claims, grokking_swaps, grokking_windows
from tdaexp.papers import grokking_numbers as grokking
from tdaexp.papers import grokking_plots as plots
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.papers.grokking_windows_plots import influence_drawings, similarity_drawings
from tdaexp.papers.transplant import confusion, parameters_of, retrainings, swap_accuracies
from tdaexp.report.findings import Drawing, Findings
from tdaexp.runtime.errors import UserError

MADE = "python attribute.py experiment=explaind_grokking, and experiment=explaind_grokking_windows"


@dataclass
class Grokking(Analysis):
    """Keys: `grafts` name to components; `outer` the graft of the outer layers, the others being pipelines, the main
    one first; `donors` steps whose weights new trainings take, the final one first; `seeds` and `steps` of the new
    trainings, and `fresh`, the standard deviation of their other weights (null = as the model begins); `swap_every`
    steps a checkpoint gets the final layers; `lasso` the component whose similarity the Lasso fits, and `strength` its
    penalty as a share of the least that leaves nothing.
    """

    needs_task: ClassVar[bool] = True

    grafts: dict[str, list[str]] = field(default_factory=dict)
    outer: str = ""
    donors: list[int] = field(default_factory=list, metadata={"distinct": True})
    seeds: int = 2
    steps: int = 200
    fresh: float | None = None
    swap_every: int = 50
    lasso: str = "layers.0.mlp.down"
    strength: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an outer graft that is none, and nothing to compare it with."""
        if self.outer not in self.grafts or len(self.grafts) < 2:
            raise UserError(f"analysis.outer='{self.outer}': must be one of at least two analysis.grafts")
        for key, least in (("seeds", 1), ("steps", 1), ("swap_every", 1)):
            if getattr(self, key) < least:
                raise UserError(f"analysis.{key}={getattr(self, key)}: must be at least {least}")
        if self.fresh is not None and not self.fresh > 0:
            raise UserError(f"analysis.fresh={self.fresh}: must be above 0, or null for the model's own start")
        if not self.donors or not 0 < self.strength < 1:
            raise UserError("analysis: donors must name a step, and strength lie between 0 and 1")

    def run(self, evidence: Evidence) -> Findings:
        """Numbers, tables, figures and statements."""
        if not hasattr(evidence.config.dataset, "modulus"):
            raise UserError("analysis=grokking: reads sums modulo a number; give dataset=modular_addition")
        layers = evidence.find(keep=["component", "step"], need=f"step and component kept; {MADE}")
        whole = evidence.find(keep=["step"], need=f"step alone kept; {MADE}")
        windows = grokking_windows.windows(evidence.stores)
        if not windows:
            raise UserError(f"runs: no store has train, query and component kept; {MADE}")
        self._check(evidence, [layers, whole, *windows.values()])
        findings = Findings("Grokking: which layers, when, and around what geometry")
        self._course(evidence, layers, whole, findings)
        self._geometry(evidence, windows, findings)
        findings.statements += grokking_claims.claims(findings.metrics)
        self._grafting(evidence, findings)
        pipelines = [name for name in self.grafts if name != self.outer]
        findings.statements += graft_claims.claims(findings.metrics, self.outer, pipelines, self.donors)
        return findings

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
        marks = {"memorised": phases["memorised"], "grokked": phases["grokked"]}
        caption = (
            "Figure 3a: accuracy; importance (absolute contributions to the logits, summed over queries and outputs) "
            "of kernel and regularisation; importance and relative regularisation D by layer. Averages over "
            f"{grokking.WINDOW} steps; {layers.sizes['query']} queries."
        )
        findings.drawings.append(Drawing("training", caption, plots.training(curves, layers, whole, marks), wide=True))

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

    def _grafting(self, evidence: Evidence, findings: Findings) -> None:
        task, modulus = evidence.task, int(evidence.config.dataset.modulus)
        hosts = list(range(0, task.trajectory.settings.total, self.swap_every))
        swaps = swap_accuracies(task, self.grafts, hosts)
        findings.tables["swaps"] = swaps
        findings.metrics |= grokking_swaps.swap_numbers(swaps)
        names = parameters_of(task, self.outer, self.grafts[self.outer])
        shown: dict[str, np.ndarray] = {}
        for step in grokking_swaps.best_hosts(swaps, self.outer, 2, apart=2 * self.swap_every):
            shown |= {f"step {step}": confusion(task, step, [], modulus)}
            shown |= {f"step {step}, outer swapped": confusion(task, step, names, modulus)}
        best = f"step {findings.metrics[f'swap_step/{self.outer}']:.0f}"
        findings.metrics["systematic"] = grokking_swaps.systematic_error(shown[best])
        findings.metrics["systematic_swapped"] = grokking_swaps.systematic_error(shown[f"{best}, outer swapped"])
        caption = (
            f"Figure 10: layers of the final model in checkpoints; confusion matrices (log counts) of two of them, as "
            f"they are and with the final {self.outer}."
        )
        findings.drawings.append(Drawing("swaps", caption, plots.swaps(swaps, shown), wide=True))
        trained = retrainings(evidence, self.grafts, self.donors, self.seeds, self.steps, self.fresh)
        control = retrainings(evidence, {"none": []}, self.donors[:1], self.seeds, self.steps, self.fresh)
        findings.tables |= {"retrained": trained, "ungrafted": control}
        usual = control.groupby("step", as_index=False)[["train", "test"]].mean()
        findings.metrics |= grokking_swaps.retraining_numbers(trained)
        findings.metrics |= {"retrain_steps": float(self.steps), "usual_test": float(usual["test"].iloc[-1])}
        caption = (
            f"Figures 3b and 11: new models, all but the named layers drawn anew ({self.seeds} seeds); bands are one "
            "standard deviation. Dotted: their training accuracy without a graft."
        )
        findings.drawings.append(Drawing("retrained", caption, plots.retrainings(trained, usual), wide=True))
        by_end = trained[trained["step"] == trained["step"].max()]
        findings.tables["retrained_ends"] = (
            pd.DataFrame(by_end).groupby(["donor", "graft"], sort=False)[["train", "test"]].mean().reset_index()
        )
