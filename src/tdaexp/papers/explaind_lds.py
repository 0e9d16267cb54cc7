"""Linear datamodeling score of path decompositions, TracIn and TRAK on a task (ExPLAIND's figure 7).

Networks are trained again on random subsets of the training examples; a method's score of a query is the rank
correlation, over subsets, of its summed influences with what these networks answer. The subsets are the same for all
methods. Every retraining is a block on disk: a killed run goes on at the next one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from tdaexp.building.tasks import build_problem
from tdaexp.data.candidates import All
from tdaexp.methods.base import Method
from tdaexp.methods.tracin import TracIn
from tdaexp.methods.trak import TRAK
from tdaexp.metrics.lds import lds, lds_interval, scores_of_all, subset
from tdaexp.metrics.settings import MetricSettings
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.pathkernel.outputs import of_model, output
from tdaexp.problem import Problem
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.validation_plots import lds_curves
from tdaexp.runtime import cache
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track
from tdaexp.training.retrain import batches_of_its_own, batches_without, retrain
from tdaexp.training.task_problem import Classification

RETRAINING = ("same", "own")


@dataclass
class Lds(Analysis):
    """Keys: `fractions` of the training set that a subset holds; `subsets` of each; `output` that is foretold;
    `retraining`: `same` weights and batches at the start as in the run that is explained, less the examples left out,
    or each its `own`; TracIn's `checkpoints`; TRAK's `dimensions` and `ridge`; `random` scores as a control; `seed`.
    """

    needs_task: ClassVar[bool] = True

    fractions: list[float] = field(
        default_factory=lambda: [0.5, 0.7, 0.9, 0.95, 0.99, 0.999], metadata={"distinct": True}
    )
    subsets: int = 100
    output: str = "margin"
    retraining: str = "same"
    checkpoints: int = 5
    dimensions: int = 512
    ridge: float = 0.01
    random: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse fractions that are none, too few subsets to rank, and unknown choices."""
        for fraction in self.fractions:
            if not 0 < fraction < 1:
                raise UserError(f"analysis.fractions: {fraction} must lie between 0 and 1, e.g. 0.5")
        if self.subsets < 3:
            raise UserError(f"analysis.subsets={self.subsets}: a rank correlation needs at least 3")
        if self.retraining not in RETRAINING:
            raise unknown("value", self.retraining, RETRAINING, "analysis.retraining")
        output(self.output)

    def run(self, evidence: Evidence) -> Findings:
        """Retrain, score, correlate."""
        problem = build_problem(evidence.config, evidence.task, All())
        methods = self._scores(evidence, problem)
        rows = []
        for fraction in self.fractions:
            members, outputs = self._retrained(evidence, problem, fraction)
            rows += self._rows(fraction, methods, members, outputs, evidence.config.metric)
        table = pd.DataFrame(rows)
        metrics = {f"lds/{row.method}/{row.fraction:g}": row.lds for row in table.itertuples()}
        caption = (
            f"Linear datamodeling score of {len(problem.queries)} queries ({self.output}) over {self.subsets} networks "
            "a fraction, trained on that share of the training set, with bootstrap intervals over subsets and queries."
        )
        drawings = [Drawing("lds", caption, lds_curves(table), wide=True)]
        return Findings("Linear datamodeling score", metrics, {"lds": table}, drawings, _statements(table))

    def _scores(self, evidence: Evidence, problem: Problem) -> dict[str, np.ndarray]:
        """Scores [Q, N] by method: of the runs' stores, then the baselines that none of them is."""
        found = {}
        for label, store in evidence.labelled().items():
            if store.attrs.get("study") != problem.fingerprint:
                raise UserError(
                    f"runs: '{label}' explains another training or other queries; give evaluate.py the model, dataset "
                    "and trainer keys of that run"
                )
            found[label] = scores_of_all(store, problem.train.ids)
        baselines: list[Method] = [TracIn(moments=self.checkpoints), TRAK(self.dimensions, self.ridge, seed=self.seed)]
        for method in baselines:
            if method.name not in {store.attrs["method"] for store in evidence.stores}:
                found[method.name] = scores_of_all(method.attribute(problem), problem.train.ids)
        if self.random:
            shape = (len(problem.queries), len(problem.train))
            found["random"] = np.random.default_rng(self.seed).standard_normal(shape)
        return found

    def _retrained(self, evidence: Evidence, problem: Problem, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Members [S, N] and outputs [S, Q] of the networks trained on subsets of that size."""
        seeds = range(self.subsets)
        members = np.stack([subset(len(problem.train), fraction, self.seed, number) for number in seeds])
        parts = (evidence.task.fingerprint, problem.queries.fingerprint(), self.output, self.retraining, self.seed)
        folder = cache.entry(problem.cache, "retrained", *parts, round(fraction * 1e6), self.subsets, by=[Lds])
        shape = (self.subsets, len(problem.queries))
        blocks = [slice(number, number + 1) for number in seeds]
        store = BlockStore(folder, {"output": (shape, "float64")}, blocks)
        with store.pending() as missing:
            done = self.subsets - len(missing)
            for number in track(missing, f"retraining on {fraction:g}", self.subsets, done):
                store.write(number, {"output": self._one(evidence, problem, members[number], number)[None]})
        return members, store.read()["output"]

    def _one(self, evidence: Evidence, problem: Problem, member: np.ndarray, number: int) -> np.ndarray:
        """Outputs [Q] of one network trained on the members; positive where a query is more likely."""
        config, fit = evidence.config, evidence.config.trainer.fit
        model, batches = config.model, batches_without(fit, config.seed, member)
        if self.retraining == "own":
            drawn = [int(value) for value in np.random.default_rng([self.seed, number]).integers(2**31, size=2)]
            model = dataclasses.replace(model, seed=drawn[0])
            batches = batches_of_its_own(fit, drawn[1], member)
        again = Classification(model.build(evidence.task.corpus), evidence.task.corpus)
        retrain(again, fit, batches)
        chosen = output(self.output)
        with torch.no_grad():
            read = of_model(again.module, chosen.read)
            values = read(dict(again.module.named_parameters()), (problem.queries.inputs, problem.queries.targets))
        return chosen.sign * values.double().sum(1).numpy()

    def _rows(
        self,
        fraction: float,
        methods: dict[str, np.ndarray],
        members: np.ndarray,
        outputs: np.ndarray,
        settings: MetricSettings,
    ) -> list[dict[str, object]]:
        """Table rows of one fraction, over the queries whose score every method defines."""
        known = ~np.isnan([lds(scores, members, outputs) for scores in methods.values()]).any(0)
        shared = {"fraction": fraction, "left_out": int((~members[0]).sum()), "queries": int(known.sum())}
        rows: list[dict[str, object]] = []
        for name, scores in methods.items():
            one = lds_interval(scores[known], members, outputs[:, known], settings)
            rows.append({"method": name, **shared, "lds": one.value, "low": one.low, "high": one.high})
        return rows


def _statements(table: pd.DataFrame) -> list[Statement]:
    """What the paper found, against this table."""
    wide = table.pivot(index="fraction", columns="method", values="lds")
    ours = next((name for name in table["method"] if str(name).startswith("explaind")), None)
    if ours is None:
        return []
    mine, many = wide[ours], wide[wide.index < 0.999]
    gap, below = (mine - wide["tracin"]).abs(), int((many["trak"] > many[ours]).sum())
    above = int((table[table["method"] == ours]["low"] > 0).sum())
    apart = {name: _apart(table, str(ours), name) for name in ("trak", "tracin")}
    return [
        Statement("TRAK is above ExPLAIND, unless next to nothing is left out",
                  f"At {below} of {len(many)} fractions; the intervals lie apart at {apart['trak']}. TRAK: "
                  f"{_listed(wide['trak'])}. ExPLAIND: {_listed(mine)}.",
                  "good" if below == len(many) else "bad" if apart["trak"] else "open"),
        Statement("ExPLAIND is close to TracIn", f"Largest difference {gap.max():.3f}; the intervals lie apart at "
                  f"{apart['tracin']} of {len(wide)} fractions. TracIn: {_listed(wide['tracin'])}.",
                  "good" if gap.max() < 0.05 else "bad" if apart["tracin"] else "open"),
        Statement("ExPLAIND foretells better than chance", f"The interval is above 0 at {above} of {len(wide)} "
                  "fractions.", "good" if above == len(wide) else "bad"),
    ]  # fmt: skip


def _apart(table: pd.DataFrame, first: str, second: str) -> int:
    """At how many fractions the intervals of two methods do not overlap."""
    one, other = (table[table["method"] == name].set_index("fraction") for name in (first, second))
    return int(((one["low"] > other["high"]) | (other["low"] > one["high"])).sum())


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{fraction:g}: {value:.3f}" for fraction, value in values.items())
