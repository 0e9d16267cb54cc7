"""A trained network that is pruned by a ranking of its parameters, and trained again where that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tdaexp.metrics.pruning import Units, agreement, largest, largest_units, units_of
from tdaexp.models.discovery import discovered
from tdaexp.papers.parameter_importance import Importance, parameter_importance
from tdaexp.pathkernel.outputs import OUTPUTS, of_model
from tdaexp.pathkernel.parameters import Layout
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.training.retrain import batches_of_its_own, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.task import TrainedTask
from tdaexp.training.task_problem import Classification

RANKINGS = ("importance", "influence", "magnitude", "random")
UNITS = ("parameter", "filter")


@dataclass(frozen=True)
class Ranking:
    """How parameters are ranked: scores [D] or, by filter, [U], larger ones stay."""

    name: str
    unit: str
    importance: Importance
    units: Units
    seed: int

    def mask(self, weights: np.ndarray, held: np.ndarray, sparsity: float) -> np.ndarray:
        """The parameters [D] to keep; those that are not `held` any more stay out."""
        if self.unit == "parameter":
            return np.asarray(largest(np.where(held, self._scores(weights), -np.inf), sparsity) & held)
        alive = np.bincount(self.units.unit, held) > 0
        return np.asarray(largest_units(np.where(alive, self._scores(weights), -np.inf), self.units, sparsity) & held)

    def _scores(self, weights: np.ndarray) -> np.ndarray:
        whole = self.unit == "filter"
        if self.name == "random":
            return np.random.default_rng(self.seed).random(self.units.unit.max() + 1 if whole else len(weights))
        if self.name == "importance":
            return (self.importance.groups if whole else self.importance.absolute).numpy()
        values = self.importance.signed.numpy() if self.name == "influence" else weights
        if not whole:
            return np.asarray(np.abs(values))
        if self.name == "influence":
            return np.abs(np.bincount(self.units.unit, values))
        return self.units.norms(values)


@dataclass(frozen=True)
class Network:
    """A trained task; what may be pruned is every parameter but the last layer's, `names`, in the order of `units`."""

    task: TrainedTask
    names: list[str]
    units: Units

    @classmethod
    def of(cls, task: TrainedTask) -> Network:
        """Leave the last layer out."""
        components = discovered(task.module).members(task.module)
        last = list(components)[-1]
        names = [name for component, members in components.items() if component != last for name in members]
        shapes = {name: tuple(task.module.get_parameter(name).shape) for name in names}
        return cls(task, names, units_of(shapes))

    def importance(self, queries: int, nodes: int) -> Importance:
        """Of the logits of the first training examples."""
        layout = Layout.of(dict(self.task.module.named_parameters()), {"pruned": tuple(self.names)})
        read, train = of_model(self.task.module, OUTPUTS["logits"].read), self.task.corpus.train
        batch = (train.inputs[:queries], train.targets[:queries])
        group = torch.from_numpy(self.units.unit)
        return parameter_importance(read, self.task.trajectory, layout, batch, group, Quadrature(nodes=nodes))

    def pruned(
        self, ranking: Ranking, sparsities: list[float], fit: FitSettings | None, seed: int
    ) -> Iterator[dict[str, float]]:
        """Measures at each sparsity; with `fit` the network is trained again after each."""
        corpus = self.task.corpus
        whole, module = self.logits(self.task.module), copy.deepcopy(self.task.module)
        held = np.ones(len(self.units.unit), dtype=bool)
        for level, sparsity in enumerate(sparsities):
            held = ranking.mask(self._flat(module), held, sparsity)
            masks = self._masks(module, held)
            for name, mask in masks.items():
                module.get_parameter(name).data.mul_(mask)
            if fit is not None:
                everyone = np.ones(len(corpus.train), dtype=bool)
                drawn = int(np.random.default_rng([seed, level]).integers(2**31))
                again = Classification(module, corpus)
                retrain(again, fit, batches_of_its_own(again, fit, drawn, everyone), masks)
            yield agreement(self.logits(module), whole, corpus.test.targets.numpy()) | {"sparsity": 1 - held.mean()}

    def logits(self, module: torch.nn.Module) -> np.ndarray:
        """Of the test examples [Q, C]."""
        with torch.no_grad():
            values: np.ndarray = module(self.task.corpus.test.inputs).numpy()
        return values

    def _flat(self, module: torch.nn.Module) -> np.ndarray:
        return np.concatenate([module.get_parameter(name).detach().numpy().ravel() for name in self.names])

    def _masks(self, module: torch.nn.Module, held: np.ndarray) -> dict[str, torch.Tensor]:
        sizes = [module.get_parameter(name).numel() for name in self.names]
        pieces = torch.from_numpy(held.astype(np.float32)).split(sizes)
        return {
            name: piece.view(module.get_parameter(name).shape) for name, piece in zip(self.names, pieces, strict=True)
        }
