"""TracIn and TRAK on a classification task: scores of every query with every training example.

TracIn (Pruthi et al. 2020, equation 1): Σ_i η_i ∇ℓ(θ_i, q)·∇ℓ(θ_i, z) over checkpoints of the recorded training, η_i
the sum of the learning rates of the steps that a checkpoint stands for.

TRAK (Park et al. 2023, section 3) of the trained network alone: φ(q)ᵀ (ΦᵀΦ + ridge)⁻¹ φ(z) · (1 − p_z), φ the gradient
of the log-odds of the target through traker's random projection.

Both: positive = helps. Cost: a gradient per example and checkpoint, and their products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.projection import make_sketch
from tdaexp.methods.task_study import TaskStudy
from tdaexp.pathkernel.outputs import OUTPUTS, of_model
from tdaexp.pathkernel.parameters import Layout, Parameters
from tdaexp.pathkernel.reverse import example_gradients
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.progress import track

ROWS = 256  # gradients at a time


def tracin(study: TaskStudy, checkpoints: int) -> np.ndarray:
    """Scores [Q, N] float64 from that many checkpoints, evenly spaced: each the middle of the steps it stands for."""
    steps = study.trajectory.steps
    if not 1 <= checkpoints <= len(steps):
        raise UserError(f"analysis.checkpoints={checkpoints}: the training has {len(steps)} recorded steps")
    total = np.zeros((len(study.queries), len(study.train)))
    for part in track(np.array_split(steps, checkpoints), "TracIn, checkpoints", checkpoints):
        parameters = study.trajectory.parameters(int(part[len(part) // 2]))
        rate = sum(study.trajectory.lr(int(step)) for step in part)
        queries = torch.cat(list(_gradients(study, parameters, study.queries, "loss")))
        columns = [queries @ rows.mT for rows in _gradients(study, parameters, study.train, "loss")]
        total += rate * torch.cat(columns, dim=1).double().numpy()
    return total


def trak(study: TaskStudy, dimensions: int, ridge: float, seed: int) -> np.ndarray:
    """Scores [Q, N] float64; `ridge` is a fraction of the mean eigenvalue of ΦᵀΦ."""
    if not 1 <= dimensions <= len(study.train):
        raise UserError(f"analysis.dimensions={dimensions}: must lie between 1 and the {len(study.train)} examples")
    parameters = dict(study.module.named_parameters())
    size = sum(parameter.numel() for parameter in parameters.values())
    sketch = make_sketch("trak", "all", (1, size), dimensions, seed)

    def features(examples: TensorExamples) -> np.ndarray:
        found = [sketch.project_gradient(rows) for rows in _gradients(study, parameters, examples, "margin")]
        return torch.cat(found).double().numpy()

    train, queries = features(study.train), features(study.queries)
    gram = train.T @ train
    gram += ridge * np.trace(gram) / dimensions * np.eye(dimensions)
    with torch.no_grad():
        p = of_model(study.module, OUTPUTS["probability"].read)(parameters, (study.train.inputs, study.train.targets))
    return queries @ np.linalg.solve(gram, train.T) * (1 - p[:, 0].double().numpy())


def _gradients(study: TaskStudy, parameters: Parameters, examples: TensorExamples, output: str) -> Iterator[Tensor]:
    """Gradients [≤ ROWS, D] of a named output, one piece of the examples after the other."""
    layout = Layout.of(parameters, {"all": tuple(parameters)})
    function = of_model(study.module, OUTPUTS[output].read)
    pieces = zip(examples.inputs.split(ROWS), examples.targets.split(ROWS), strict=True)
    return (example_gradients(function, parameters, layout, piece) for piece in pieces)
