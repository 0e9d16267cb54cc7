"""Pruning by ExPLAIND's importance against magnitude pruning with retraining (ExPLAIND's section 4.1 and figure 2).

The importance Ψ̄ is taken from predictions of training examples, accuracy and KL from the test examples. The last layer
is left whole, as in the paper. Parameters are ranked singly over all layers (the paper), or as filters and neurons
within each layer (Li et al. 2017). `retrained` networks lose the least weights of the level before, then are trained
again as long as the first time, level by level. Each seed (weights and batches) is a block on disk.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tdaexp.data.tensors import TensorCorpus
from tdaexp.metrics.intervals import bootstrap
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.papers.pruned_network import RANKINGS, UNITS, Network, Ranking
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.report.validation_plots import pruning_curves
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track
from tdaexp.training.task import check_pair, trained_task

MEASURES = ("accuracy", "agreement", "kl", "sparsity")


@dataclass
class Pruning(Analysis):
    """Keys: `sparsities` in order, levels of the retrained ones too; `seeds`, how many trainings; `rankings`:
    importance (Ψ̄), influence (|Ψ|), magnitude, random; `units`: parameter, filter; `queries`, training examples whose
    predictions Ψ is about; `nodes` of the quadrature in each step.
    """

    needs_runs: ClassVar[bool] = False
    needs_task: ClassVar[bool] = True
    sparsities: list[float] = field(
        default_factory=lambda: [0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99], metadata={"distinct": True}
    )
    seeds: int = 5
    rankings: list[str] = field(default_factory=lambda: ["importance", "magnitude", "random"])
    units: list[str] = field(default_factory=lambda: list(UNITS))
    queries: int = 128
    nodes: int = 1

    def __post_init__(self) -> None:
        """Refuse levels out of order and unknown names."""
        if self.sparsities != sorted(self.sparsities) or not all(0 <= level < 1 for level in self.sparsities):
            raise UserError(f"analysis.sparsities={self.sparsities}: must rise, from 0 to below 1")
        for key, known in (("rankings", RANKINGS), ("units", UNITS)):
            for name in getattr(self, key):
                if name not in known:
                    raise unknown("value", name, known, f"analysis.{key}")
        if min(self.seeds, self.queries) < 1:
            raise UserError("analysis.seeds and analysis.queries: must be at least 1")

    def run(self, evidence: Evidence) -> Findings:
        """Train, score and prune every seed, then compare."""
        shape = (self.seeds, len(self.units), len(self.rankings), 2, len(self.sparsities))
        check_pair(evidence.config.model, evidence.config.dataset)
        corpus = evidence.config.dataset.corpus()
        parts = (evidence.config.model.start_fingerprint(), corpus.train.fingerprint(), corpus.test.fingerprint())
        folder = evidence.cache(
            "pruned", *parts, evidence.config.trainer.fit.deciding(), evidence.config.seed, self, by=Pruning
        )
        arrays: dict[str, tuple[tuple[int, ...], str]] = {name: (shape, "float64") for name in MEASURES}
        arrays["whole"] = ((self.seeds,), "float64")
        blocks = [slice(seed, seed + 1) for seed in range(self.seeds)]
        store = BlockStore(folder, arrays, blocks)
        with store.pending() as missing:
            for seed in track(missing, "pruning, seeds", self.seeds, self.seeds - len(missing)):
                found = self._one(evidence.config, corpus, seed)
                store.write(seed, {name: np.asarray(values)[None] for name, values in found.items()})
        return self._findings(store.read(), evidence.config.metric)

    def _one(self, config: Any, corpus: TensorCorpus, seed: int) -> dict[str, np.ndarray]:
        """Measures [units, rankings, 2, sparsities] of one seed, and the accuracy of the `whole` network."""
        model, fit = dataclasses.replace(config.model, seed=config.model.seed + seed), config.trainer.fit
        task = trained_task(model, corpus, fit, cache_dir=Path(config.cache_dir), seed=config.seed + seed)
        network = Network.of(task)
        importance = network.importance(self.queries, self.nodes)
        shape = (len(self.units), len(self.rankings), 2, len(self.sparsities))
        found = {name: np.empty(shape) for name in MEASURES}
        choices = itertools.product(enumerate(self.units), enumerate(self.rankings), (0, 1))
        for (row, unit), (column, ranking), again in choices:
            chosen = Ranking(ranking, unit, importance, network.units, config.seed + seed)
            levels = network.pruned(chosen, self.sparsities, fit if again else None, config.seed + seed)
            for level, measures in enumerate(levels):
                for name, value in measures.items():
                    found[name][row, column, again, level] = value
        whole = network.logits(task.module)
        return found | {"whole": np.asarray((whole.argmax(1) == corpus.test.targets.numpy()).mean())}

    def _findings(self, found: dict[str, np.ndarray], settings: Any) -> Findings:
        rows = []
        for row, column, again, level in np.ndindex(*found["kl"].shape[1:]):
            values = [found[name][:, row, column, again, level] for name in MEASURES]
            line: dict[str, Any] = {
                "unit": self.units[row], "ranking": self.rankings[column], "retrained": bool(again),
                "level": self.sparsities[level],
            }  # fmt: skip
            for name, one in zip(MEASURES, bootstrap(np.stack(values), settings), strict=True):
                line |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
            rows.append(line)
        table = pd.DataFrame(rows)
        metrics = {"pruning/whole": float(found["whole"].mean())}
        for line in table.to_dict("records"):
            kind = "retrained" if line["retrained"] else "as_is"
            for name in ("accuracy", "kl"):
                metrics[f"pruning/{line['unit']}/{line['ranking']}/{kind}/{line['level']:g}/{name}"] = line[name]
        whole, drawings = metrics["pruning/whole"], []
        for unit, part in table.groupby("unit", sort=False):
            caption = (
                f"Pruned by {unit}: test accuracy and KL from the unpruned network against sparsity, means over "
                f"{self.seeds} trainings with bootstrap intervals. The output layer is left whole."
            )
            drawings.append(Drawing(f"pruning_{unit}", caption, pruning_curves(part, whole), wide=True))
        return Findings("Pruning by importance", metrics, {"pruning": table}, drawings, _statements(table))


def _statements(table: pd.DataFrame) -> list[Statement]:
    """What the paper found, against this table."""
    single = table[(table["unit"] == "parameter") & (table["level"] >= 0.7)]
    chosen = {
        (name, again): part.set_index("level") for (name, again), part in single.groupby(["ranking", "retrained"])
    }
    if not {("importance", False), ("magnitude", True), ("magnitude", False)} <= set(chosen):
        return []
    ours, base, plain = chosen["importance", False], chosen["magnitude", True], chosen["magnitude", False]
    lower, gap = ours["kl"] < base["kl"], base["accuracy"] - ours["accuracy"]
    above = ours["accuracy"] > plain["accuracy"]
    return [
        Statement("The KL divergence is below that of magnitude with retraining at every sparsity",
                  f"At {int(lower.sum())} of {len(lower)} levels from 0.7 on. Ψ̄: {_listed(ours['kl'])}. Magnitude, "
                  f"retrained: {_listed(base['kl'])}.", "good" if lower.all() else "bad"),
        Statement("Accuracy is comparable to magnitude with retraining (within 0.05)",
                  f"At {int((gap <= 0.05).sum())} of {len(gap)} levels. Ψ̄: {_listed(ours['accuracy'])}. Magnitude, "
                  f"retrained: {_listed(base['accuracy'])}.", "good" if gap.max() <= 0.05 else "bad"),
        Statement("Ψ̄ finds better parameters than magnitude does, where neither is trained again",
                  f"At {int(above.sum())} of {len(above)} levels. Magnitude: {_listed(plain['accuracy'])}.",
                  "good" if above.all() else "bad"),
    ]  # fmt: skip


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{level:g}: {value:.3g}" for level, value in values.items())
