"""The training dynamics of a language model from its checkpoints: ExPLAIND's figures 6, 14 and 15.

Each finding of the paper about EuroLLM is held against the run's own numbers; on another model, such as the stand-in,
it says what is true of that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp.metrics.layer_views import PARTS, VIEWS, grouped, loss_changes
from tdaexp.metrics.loss_change import loss_change
from tdaexp.papers.base import Analysis, Evidence
from tdaexp.report.checkpoint_plots import layer_views, part_totals
from tdaexp.report.findings import Drawing, Findings, Statement
from tdaexp.runtime.errors import UserError

PAPER_ERROR, PAPER_CHANGE = 4.46e-8, 6.05e-4
EUROLLM = "eurollm1b7"
MADE = "python attribute.py experiment=explaind_eurollm, with scale=paper for EuroLLM"
CAPTIONS = {
    "influence": ("fig6", "the sampled batch (figure 6)"),
    "regularisation": ("fig14", "weight decay (figure 14)"),
    "first_moment": ("fig15", "the stored first moment (figure 15)"),
}


@dataclass
class ExplaindEurollm(Analysis):
    """Keys: `early` and `late`, the shares of the checkpoints that count as the first and as the last phase."""

    early: float = 0.33
    late: float = 0.33

    def __post_init__(self) -> None:
        """Refuse phases that are none or overlap."""
        if not (self.early > 0 and self.late > 0 and self.early + self.late <= 1):
            raise UserError(f"analysis.early={self.early}, late={self.late}: must be positive, together at most 1")

    def run(self, evidence: Evidence) -> Findings:
        """Figures, numbers and what they say of the paper's findings."""
        store = evidence.find(need=f"simulated updates at checkpoints; {MADE}", updates="simulated")
        if store.sizes["step"] < 3:
            raise UserError(f"runs: {store.sizes['step']} checkpoints tell no phases apart; give at least 3")
        changes, exact = loss_changes(store), loss_change(store)
        findings = Findings("ExPLAIND: training dynamics from checkpoints")
        findings.metrics = {f"explaind/{key}": value for key, value in exact.items()}
        findings.tables = {"components": changes, "checkpoints": _checkpoints(store)}
        for view in VIEWS:
            findings.tables[f"by_{view}"] = pd.concat(
                [grouped(changes, part, view).assign(part=part).reset_index() for part in PARTS]
            )
        findings.drawings = _drawings(store, changes)
        first, last = self._phases(store)
        dynamics = [
            _phases(changes, first, last),
            _depth(changes, first, last),
            _embedding(changes),
            _head(changes, first, last),
            _oscillation(changes),
        ]
        findings.statements = [_completeness(store, exact), *(_about(store, one) for one in dynamics)]
        return findings

    def _phases(self, store: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Steps of the first and of the last phase."""
        steps = store["step"].values
        first, last = max(1, round(self.early * len(steps))), max(1, round(self.late * len(steps)))
        return steps[:first], steps[-last:]


def _about(store: xr.Dataset, statement: Statement) -> Statement:
    """A claim of the paper is one about EuroLLM: other models neither reproduce it nor contradict it."""
    name = store.attrs["config"]["model"]["name"]
    if name == EUROLLM:
        return statement
    same = "the same is seen" if statement.tone == "good" else "it is not seen"
    return Statement(f"Of EuroLLM: {statement.claim}", f"In {name} {same}. {statement.text}", "open")


def _checkpoints(store: xr.Dataset) -> pd.DataFrame:
    """A row per checkpoint: loss, change, residual and the update's settings."""
    columns = {name: -store[name].sum("query").values for name in ("start", "change", "residual")}
    plain = {name: store[name].values for name in ("nodes", "lr", "gradient_norm", "batch_loss", "stored")}
    return pd.DataFrame({"step": store["step"].values, **columns, **plain}).rename(columns={"start": "loss"})


def _drawings(store: xr.Dataset, changes: pd.DataFrame) -> list[Drawing]:
    residual = pd.Series(-store["residual"].sum("query").values, index=store["step"].values)
    drawings = [Drawing("totals", "The whole loss change by part, and what the sums miss.",
                        part_totals(changes, residual), True)]  # fmt: skip
    for part, (name, cause) in CAPTIONS.items():
        caption = f"Change of the held-out loss in one update by {cause}, by parameter type and by layer."
        drawings.append(Drawing(name, caption, layer_views(changes, part), True))
    absolute = "The first moment's changes of the loss without their signs (figure 15, below)."
    drawings.append(Drawing("fig15_absolute", absolute, layer_views(changes, "first_moment", absolute=True), True))
    return drawings


def _completeness(store: xr.Dataset, exact: dict[str, float]) -> Statement:
    claim = "The sum of the parts is the simulated change of the loss."
    if "relative_error" not in exact:
        return Statement(claim, "No checkpoint's update changed the loss.", "bad")
    relative = exact["relative_error"]
    assumed = int((~store["stored"].values).sum())
    state = (
        f" {assumed} checkpoints held no state of the optimiser; one that begins anew was assumed." if assumed else ""
    )
    text = (
        f"Mean change {exact['loss_change']:.3g} nats per token over {store.sizes['step']} checkpoints, mean error "
        f"{exact['error']:.3g} (standard deviation {exact['error_std']:.2g}): {relative:.2g} of the change, "
        f"{exact['relative_error_max']:.2g} at the worst checkpoint, with {float(store['nodes'].mean()):.3g} nodes. "
        f"The paper: {PAPER_ERROR:.3g} of {PAPER_CHANGE:.3g} with 100 nodes.{state}"
    )
    return Statement(claim, text, "good" if relative < 1e-4 else "bad")


def _phases(changes: pd.DataFrame, first: np.ndarray, last: np.ndarray) -> Statement:
    mlp = [_share(changes, steps, "mlp.") for steps in (first, last)]
    attention = [_share(changes, steps, "attn.") for steps in (first, last)]
    holds = mlp[0] > attention[0] and attention[1] > attention[0]
    text = (
        f"Of the batch's change of the loss, MLPs bring {mlp[0]:.0%} in the first checkpoints (to step {first[-1]}), "
        f"{mlp[1]:.0%} in the last ones (from step {last[0]}); attention {attention[0]:.0%} and {attention[1]:.0%}."
    )
    return Statement("First the MLPs learn, then attention's share grows.", text, "good" if holds else "bad")


def _depth(changes: pd.DataFrame, first: np.ndarray, last: np.ndarray) -> Statement:
    table = grouped(changes, "influence", "depth")
    layers = table[[name for name in table if str(name).startswith("layer ")]]
    numbers = np.arange(layers.shape[1])
    centres = [
        float((layers.loc[steps].sum() * numbers).sum() / layers.loc[steps].sum().sum()) for steps in (first, last)
    ]
    text = (
        f"The layers' contributions have their centre at layer {centres[0]:.2f} of {len(numbers)} (from 0) in the "
        f"first checkpoints and at {centres[1]:.2f} in the last ones."
    )
    claim = "Influence moves from the layers near the output towards intermediate and lower ones."
    return Statement(claim, text, "good" if centres[1] < centres[0] else "bad")


def _embedding(changes: pd.DataFrame) -> Statement:
    own = changes[changes["part"] == "influence"]
    share = own.loc[own["component"] == "embed", "loss_change"].sum() / own["loss_change"].sum()
    text = f"The input embedding brings {share:.1%} of the batch's change of the loss over all checkpoints."
    return Statement("The embeddings play a small part.", text, "good" if abs(share) < 0.1 else "bad")


def _head(changes: pd.DataFrame, first: np.ndarray, last: np.ndarray) -> Statement:
    claim = "Weight decay of the output embedding first lowers the loss and later raises it."
    table = grouped(changes, "regularisation", "type")
    if "lm_head" not in table:
        return Statement(
            claim, "The head is tied to the embedding here, so that it has no component of its own.", "bad"
        )
    early, late = (float(table.loc[steps, "lm_head"].mean()) for steps in (first, last))
    text = f"Its mean change of the loss is {early:+.2g} in the first checkpoints and {late:+.2g} in the last ones."
    return Statement(claim, text, "good" if early < 0 < late else "bad")


def _oscillation(changes: pd.DataFrame) -> Statement:
    def turns(part: str) -> float:
        signs = np.sign(grouped(changes, part, "type").values)
        return float((signs[1:] != signs[:-1]).mean())

    text = (
        f"From one checkpoint to the next a type's contribution changes its sign in {turns('first_moment'):.0%} of the "
        f"cases for the first moment, in {turns('influence'):.0%} for the batch."
    )
    claim = "The first moment's influence oscillates around zero."
    return Statement(claim, text, "good" if turns("first_moment") > max(0.25, turns("influence")) else "bad")


def _share(changes: pd.DataFrame, steps: np.ndarray, kind: str) -> float:
    """Share of the types that begin with `kind` in the batch's change of the loss over some steps."""
    own = changes[(changes["part"] == "influence") & changes["step"].isin(steps)]
    return float(own.loc[own["type"].str.startswith(kind), "loss_change"].sum() / own["loss_change"].sum())
