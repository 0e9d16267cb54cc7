"""How few steps a decomposition may do with (ExPLAIND's appendix G.2 and figure 8).

A store over all steps has the answer for any choice of them: a sub-sampled decomposition is the sum over the chosen
ones. Steps are chosen by how much they change a held-out loss, evenly, or at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from tdaexp.building.tasks import build_problem
from tdaexp.metrics.intervals import bootstrap
from tdaexp.metrics.settings import MetricSettings
from tdaexp.metrics.subsampling import Reconstruction, StepSums
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.pathkernel.subsample import evenly_spaced_steps, steps_of_largest_change
from tdaexp.paths.steps import held_out_changes
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.validation_plots import subsampling_curves
from tdaexp.runtime.errors import UserError
from tdaexp.training.history import RecordedSteps

MADE = "python attribute.py experiment=explaind_subsampling"
RULES = ("loss_change", "uniform", "random")


@dataclass
class Subsampling(Analysis):
    """Keys: `shares` of the steps that are kept; `draws` of random steps, averaged; `held_out`, how many of the last
    test examples rank the steps; `seed`.
    """

    needs_task: ClassVar[bool] = True

    shares: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], metadata={"distinct": True}
    )
    draws: int = 20
    held_out: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"analysis.shares={self.shares}: must be above 0 and at most 1")
        if min(self.draws, self.held_out) < 1:
            raise UserError("analysis.draws and analysis.held_out: must be at least 1")

    def run(self, evidence: Evidence) -> Findings:
        """Sum over chosen steps, and hold the sums against the model."""
        store = evidence.find(need=f"method=explaind with method.keep=[step,query,output]; {MADE}", method="explaind")
        task = evidence.task
        problem = build_problem(evidence.config, task, dtype=torch.float32)
        history = RecordedSteps(problem.model, task.trajectory, task.corpus.test)
        if store.attrs.get("study") != problem.fingerprint:
            raise UserError(
                "runs: the store explains another training or other queries; give evaluate.py the model, dataset and "
                "trainer keys of that run"
            )
        self._check_held_out(task.corpus.test.ids, problem.queries.ids)
        sums = StepSums(store)
        changes = held_out_changes(problem, history, sums.steps, self.held_out)
        rows = []
        for share in self.shares:
            for rule, choices in self._choices(sums.steps, changes, share).items():
                found = [sums.over(choice) for choice in choices]
                rows.append(_row(rule, share, len(choices[0]), found, evidence.config.metric))
        table = pd.DataFrame(rows)
        held = pd.DataFrame({"step": sums.steps, "held_out_change": changes})
        keys = ("agreement", "kl", "correlation", "missing")
        metrics = {f"subsampling/{r['rule']}/{r['share']:g}/{k}": r[k] for r in table.to_dict("records") for k in keys}
        caption = (
            f"The decomposition summed over a share of the {len(sums.steps)} steps, against the model: agreement of "
            f"classes on {len(problem.queries)} queries (with bootstrap intervals), KL of its classes, and the part of "
            f"the change of the logits that is missing. Steps are ranked by the loss of {self.held_out} other test "
            "examples."
        )
        drawings = [Drawing("subsampling", caption, subsampling_curves(table), wide=True)]
        tables = {"subsampling": table, "held_out_changes": held}
        return Findings("Decompositions over fewer steps", metrics, tables, drawings, _statements(table))

    def _check_held_out(self, test: list[str], queries: list[str]) -> None:
        if set(test[-self.held_out :]) & set(queries):
            raise UserError(
                f"analysis.held_out={self.held_out}: the last test examples are queries as well; set "
                f"dataset.query_limit to at most {max(0, len(test) - self.held_out)} of {len(test)} in both commands"
            )

    def _choices(self, steps: list[int], changes: np.ndarray, share: float) -> dict[str, list[list[int]]]:
        """Steps by rule; several draws of random ones."""
        best = steps_of_largest_change(steps, changes, share)
        drawn = [
            np.random.default_rng([self.seed, draw]).permutation(steps)[: len(best)].tolist()
            for draw in range(self.draws)
        ]
        return {"loss_change": [best], "uniform": [evenly_spaced_steps(steps, share)], "random": drawn}


def _row(
    rule: str, share: float, steps: int, found: list[Reconstruction], settings: MetricSettings
) -> dict[str, object]:
    """A table row: means over draws, the interval over queries."""
    agreement, kl = (np.mean([getattr(one, name) for one in found], axis=0) for name in ("agreement", "kl"))
    interval = bootstrap(agreement[None], settings)[0]
    return {
        "rule": rule, "share": share, "steps": steps,
        "agreement": interval.value, "low": interval.low, "high": interval.high, "kl": float(kl.mean()),
        "correlation": float(np.mean([one.correlation for one in found])),
        "missing": float(np.mean([one.missing for one in found])),
    }  # fmt: skip


def _statements(table: pd.DataFrame) -> list[Statement]:
    """What the paper found, against this table."""
    wide = table.pivot(index="share", columns="rule", values="agreement")
    kept, inner = wide[wide.index >= 0.6]["loss_change"], wide[wide.index < 1]
    better = int((inner["loss_change"] > inner["uniform"]).sum())
    return [
        Statement("The 60 % of the steps with the largest held-out change predict what the model does (agreement of "
                  "0.95 at least)", f"Agreement by share: {_listed(kept)}.",
                  "good" if len(kept) and kept.min() >= 0.95 else "bad"),
        Statement("These steps stand for the whole better than evenly spaced ones",
                  f"They agree more at {better} of {len(inner)} shares below 1. Evenly spaced: "
                  f"{_listed(wide['uniform'][kept.index])}; random: {_listed(wide['random'][kept.index])}.",
                  "good" if better == len(inner) else "bad"),
    ]  # fmt: skip


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{share:g}: {value:.3f}" for share, value in values.items())
