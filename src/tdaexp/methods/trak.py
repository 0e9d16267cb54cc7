"""TRAK: influence in a linear model of the trained network, in randomly projected gradients.

Source: Park et al. 2023, section 3, equation 13 without its soft threshold (as in traker): with φ_c = P ∇f the
projected gradients at checkpoint c, and Φ_c those of all examples that the model was trained on as rows,

    τ(z, q) = [1/C Σ_c φ_c(q)ᵀ (Φ_cᵀ Φ_c + ridge)⁻¹ φ_c(z)] · [1/C Σ_c Q_c(z)]

f is the mean over an example's predicted tokens of log(p / (1 - p)), the output function of the paper for
classification taken token by token, and Q the mean of 1 - p over them. P is a matrix of its own for each component, and
their products add up: φ is a projection of the whole gradient, and the part of φ(z) that comes from a component gives
the component axis. `checkpoints=all` averages over those of one training, the paper's cheap ensemble. Sign: positive =
helps. Fills query, train and component. Cost: a forward-backward pass and k numbers of every gradient entry per example
and checkpoint.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from tdaexp.curvature.ggn import LogitsAt
from tdaexp.curvature.layers import layers_of
from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.gradients.capture import loss_positions
from tdaexp.gradients.features import component_features
from tdaexp.gradients.measurements import as_loss, logit_margin
from tdaexp.gradients.projection import KINDS, make_sketch
from tdaexp.methods.base import Method
from tdaexp.methods.parts import PARTS, names_of, part_note, with_notes
from tdaexp.methods.study import Study
from tdaexp.methods.tracin import checkpoints_of, load_checkpoint
from tdaexp.models.components import ComponentMap
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime import ranks
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.shrink import Shrinking, two

log = logging.getLogger(__name__)
ENSEMBLES = ("last", "all")


@dataclass
class TRAK(Method):
    """Keys: `dimensions` k of the projection, `ridge` (a fraction of the mean eigenvalue of ΦᵀΦ), `checkpoints` (`last`
    = the model alone, `all` that its training kept), `projection` and `distribution` as for `project` (`trak` =
    traker's), `part` of the model (`blocks` = attention and MLP, `attention`, `mlp`), `components` (names, in place of
    `part`), `seed`.
    """

    dimensions: int = 256
    ridge: float = 0.01
    checkpoints: str = "last"
    projection: str = "trak"
    distribution: str = "rademacher"
    part: str = "blocks"
    components: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        for key, choices in (("checkpoints", ENSEMBLES), ("projection", KINDS), ("part", PARTS)):
            if getattr(self, key) not in choices:
                raise unknown(key, getattr(self, key), choices, f"method.{key}")
        if self.dimensions < 1:
            raise UserError(f"method.dimensions={self.dimensions}: must be at least 1")
        if not self.ridge >= 0:
            raise UserError(f"method.ridge={self.ridge}: must not be negative; try 0.01")

    @property
    def label(self) -> str:
        """Name, that it is an ensemble if it is one, and the part of the model if it is not the usual one."""
        return with_notes(
            self.name, ["" if self.checkpoints == "last" else "ensemble", part_note(self.part, self.components)]
        )

    @property
    def wants_checkpoints(self) -> bool:
        """Where all are averaged."""
        return self.checkpoints == "all"

    def attribute(self, study: Study) -> xr.Dataset:
        """Scores averaged over checkpoints, times the averaged weights of the training examples."""
        every = study.components()
        components = layers_of(every.select(names_of(every, self.part, self.components))).components
        log.info("%s: %s", self.name, components.coverage_line())
        models = [("last", study.loaded)]
        if self.checkpoints == "all":
            models = [(f"step-{one.step}", load_checkpoint(study, one)) for one in checkpoints_of(study)]
        kernels, weights = [], []
        for name, loaded in models:
            fitted = self._features(study, components, loaded, study.curvature_examples, name).sum(1)
            train = self._features(study, components, loaded, study.train, name)
            queries = self._features(study, components, loaded, study.queries, name).sum(1)
            kernels.append(kernel(queries, train, fitted, study.pairs, self.ridge))
            weights.append(out_to_loss(loaded, study.train, study.compute.tokens_per_batch))
        values = np.mean(kernels, axis=0) * np.mean(weights, axis=0)[study.pairs][..., None]
        return study.label(values, components).assign_attrs(dimensions=self.dimensions, checkpoints=len(models))

    def _features(
        self, study: Study, components: ComponentMap, loaded: LoadedModel, examples: Examples, name: str
    ) -> np.ndarray:
        """Projected gradients [N, K, k] of -f; the sign falls out of every product."""
        sketches = {
            one.name: make_sketch(self.projection, one.name, one.matrix, self.dimensions, self.seed, self.distribution)
            for one in components.components
        }
        dims = {sketch.dim for sketch in sketches.values()}
        if len(dims) > 1:
            raise UserError(
                f"projection={self.projection} cannot give all components {self.dimensions} dimensions (it gives "
                f"{min(dims)} to {max(dims)}); use projection=trak, or method.dimensions that are a square"
            )
        settings = [self.projection, self.distribution, self.seed, self.dimensions]
        place = study.store if examples is study.queries else study.training_store
        found = component_features(
            loaded.model,
            components,
            examples,
            sketches,
            store=place("trak", examples.fingerprint(), name, components.names, settings),
            loss=as_loss(logit_margin),
            tokens_per_batch=study.compute.tokens_per_batch,
        )
        return np.stack([found[one] for one in components.names], axis=1)


def kernel(queries: np.ndarray, train: np.ndarray, fitted: np.ndarray, pairs: np.ndarray, ridge: float) -> np.ndarray:
    """φ(q)ᵀ (ΦᵀΦ + ridge)⁻¹ φ(z) by component [Q, C, K], in float64.

    From `queries` [Q, k], `train` [N, K, k] and Φ = `fitted` [M, k], the examples that the model was trained on.
    `ridge` is a fraction of the mean eigenvalue of ΦᵀΦ. NaN where `pairs` [Q, C] is -1. Errors (UserError): ΦᵀΦ is
    singular and there is no ridge.
    """
    phi = fitted.astype(np.float64)
    gram = phi.T @ phi
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    if np.linalg.cond(gram) > 1 / np.finfo(np.float32).eps:
        raise UserError(
            f"trak: {len(gram)} dimensions for {len(phi)} training examples leave ΦᵀΦ singular; set method.ridge=0.01, "
            "or fewer method.dimensions"
        )
    solved = np.linalg.solve(gram, queries.T.astype(np.float64)).T
    columns = [np.einsum("qd,qkd->qk", solved, train[column], optimize=True) for column in pairs.T]
    return np.where((pairs < 0)[..., None], np.nan, np.stack(columns, axis=1))


def out_to_loss(loaded: LoadedModel, examples: Examples, tokens_per_batch: int) -> np.ndarray:
    """Q [N] float64: the mean of 1 - p over each example's predicted tokens; the processes share the batches."""
    logits_at, device = LogitsAt(loaded.model), loaded.model.device
    order = np.argsort(examples.lengths, kind="stable").tolist()
    values, me = np.zeros(len(examples)), ranks.current()

    def run(members: list[int]) -> np.ndarray:
        batch = collate([examples[index] for index in members])
        positions, targets, weights = loss_positions(batch, "mean")
        with torch.no_grad():
            logits = logits_at(batch.tokens.to(device), positions.to(device)).double()
        p = torch.softmax(logits, dim=-1).gather(2, targets[..., None].to(device))[..., 0]
        found: np.ndarray = ((1 - p) * weights.to(device)).sum(1).cpu().numpy()
        return found

    compute = Shrinking(run, two, np.concatenate)
    for members in token_budget_batches(examples.lengths, order, tokens_per_batch)[me.rank :: me.world]:
        values[members] = compute(members)
    ranks.together(torch.from_numpy(values))  # zeros where another process computes
    return values
