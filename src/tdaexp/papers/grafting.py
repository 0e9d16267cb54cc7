"""The part of the grokking study that puts layers into other models (ExPLAIND, Figures 3b, 10 and 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tdaexp.papers import grokking_numbers, grokking_swaps
from tdaexp.papers import grokking_plots as plots
from tdaexp.papers.base import Evidence
from tdaexp.papers.transplant import confusion, parameters_of, retrainings, swap_accuracies
from tdaexp.report.findings import Drawing, Findings

if TYPE_CHECKING:
    from tdaexp.papers.grokking import Grokking


def swaps(study: Grokking, evidence: Evidence, findings: Findings) -> None:
    """The final model's layers in its earlier checkpoints (Figure 10)."""
    task, modulus = evidence.task, int(evidence.config.dataset.modulus)
    hosts = list(range(0, task.trajectory.settings.total, study.swap_every))
    swaps = swap_accuracies(task, study.grafts, hosts)
    findings.tables["swaps"] = swaps
    findings.metrics |= grokking_swaps.swap_numbers(swaps)
    names = parameters_of(task, study.outer, study.grafts[study.outer])
    shown: dict[str, np.ndarray] = {}
    for step in grokking_swaps.best_hosts(swaps, study.outer, 2, apart=2 * study.swap_every):
        shown |= {f"step {step}": confusion(task, step, [], modulus)}
        shown |= {f"step {step}, outer swapped": confusion(task, step, names, modulus)}
    best = f"step {findings.metrics[f'swap_step/{study.outer}']:.0f}"
    findings.metrics["systematic"] = grokking_swaps.systematic_error(shown[best])
    findings.metrics["systematic_swapped"] = grokking_swaps.systematic_error(shown[f"{best}, outer swapped"])
    caption = (
        f"Figure 10: layers of the final model in checkpoints; confusion matrices (log counts) of two of them, as "
        f"they are and with the final {study.outer}."
    )
    findings.drawings.append(Drawing("swaps", caption, plots.swaps(swaps, shown), wide=True))


def grafts(study: Grokking, evidence: Evidence, findings: Findings) -> None:
    """New trainings around the grafts; the usual training's phases are what they are held against."""
    findings.metrics |= grokking_numbers.phase_numbers(grokking_numbers.accuracies(evidence.task.note["curves"]))
    trained = retrainings(evidence, study.grafts, study.donors, study.seeds, study.steps, study.fresh)
    control = retrainings(evidence, {"none": []}, study.donors[:1], study.seeds, study.steps, study.fresh)
    findings.tables |= {"retrained": trained, "ungrafted": control}
    usual = control.groupby("step", as_index=False)[["train", "test"]].mean()
    findings.metrics |= grokking_swaps.retraining_numbers(trained)
    findings.metrics |= {"retrain_steps": float(study.steps), "usual_test": float(usual["test"].iloc[-1])}
    caption = (
        f"Figures 3b and 11: new models around the named layers of a checkpoint, all others drawn anew "
        f"({study.seeds} seeds); bands are one "
        "standard deviation. Dotted: their training accuracy without a graft."
    )
    findings.drawings.append(Drawing("retrained", caption, plots.retrainings(trained, usual), wide=True))
    by_end = trained[trained["step"] == trained["step"].max()]
    findings.tables["retrained_ends"] = (
        pd.DataFrame(by_end).groupby(["donor", "graft"], sort=False)[["train", "test"]].mean().reset_index()
    )
