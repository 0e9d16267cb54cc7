"""How near each inverse of the curvature comes to the exact one, and in how many iterations `cg` gets there.

A transformer of two layers classifies digits, read row by row; the exact damped inverse is dense, in float64. For
several dampings it prints the Spearman correlation of each method's scores of 200 training examples with the exact
ones, mean over 24 queries; the iterations of `cg` to a residual of 1e-3 with each preconditioner, and the residual that
`astra` leaves; with the CPU seconds of each.

    python benchmarks/curvature.py [steps of training]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.data.candidates import Candidates
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import fitted_gradients, query_gradients, train_gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.influence import scores
from tdaexp.methods.astra import ASTRA
from tdaexp.methods.base import Method
from tdaexp.methods.cg import CG
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.problem import Compute, Problem

TRAIN, QUERIES, WIDTH, INNER, DEPTH = 200, 24, 12, 24, 2
DAMPINGS = (0.1, 1.0, 10.0)
"""λ as multiples of the mean eigenvalue."""


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT / WIDTH**0.5, dim=-1)
        return self.o(weights @ self.v(x))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(nn.functional.layer_norm(x, (WIDTH,)))
        return x + self.mlp(nn.functional.layer_norm(x, (WIDTH,)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(16, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 8, 8]; each row comes with a one-hot of its place."""
        places = torch.eye(8, dtype=x.dtype).expand(len(x), 8, 8)
        x = self.read(torch.cat([x, places], dim=2))
        for layer in self.layers:
            x = layer(x)
        return self.head(nn.functional.layer_norm(x.mean(1), (WIDTH,)))


def trained(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = Transformer().double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = torch.from_numpy(np.random.default_rng([0, step]).integers(0, len(images), 32))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"trained for {steps} steps, loss {float(loss.detach()):.3f}")
    return model.requires_grad_(False).eval()


def build(folder: Path, steps: int) -> Problem:
    bunch = load_digits()
    images, labels = torch.from_numpy(bunch.images / 16), torch.from_numpy(bunch.target).long()
    count = TRAIN + QUERIES
    model = trained(images[:TRAIN], labels[:TRAIN], steps)
    every = TensorExamples([f"e{k}" for k in range(count)], images[:count], labels[:count])
    train, queries = every.select(range(TRAIN)), every.select(range(TRAIN, count))
    pairs = np.tile(np.arange(TRAIN), (QUERIES, 1))
    return Problem(
        model, "benchmark", discovered(model, lambda: model(images[:2]), 2), Classes(), train, queries,
        ["test"] * QUERIES, Candidates(pairs, np.full(pairs.shape, np.nan)), np.zeros(pairs.shape, dtype=bool),
        Compute(torch.device("cpu"), torch.float64, 4096, 1.0), folder, 0,
    )  # fmt: skip


def main(steps: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        problem = build(Path(folder), steps)
        components = layers_of(problem.map).components
        ggn = TrainingGGN(fitted_gradients(problem, components))
        dense = torch.cat([ggn.multiply(rows) for rows in torch.eye(ggn.size, dtype=torch.float64).split(256)])
        mean = float(dense.trace()) / ggn.size
        asked, fitted = (
            query_gradients(problem, components, "mean", "log_likelihood"),
            train_gradients(problem, components),
        )
        queries, train = (gradient_vectors(side, list(range(len(side)))) for side in (asked, fitted))
        for multiple in DAMPINGS:
            damping = multiple * mean
            damped = dense + damping * torch.eye(ggn.size, dtype=torch.float64)
            exact = (torch.linalg.solve(damped, queries.T).T @ train.T).numpy()
            print(f"\nλ = {multiple:g} × the mean eigenvalue of {ggn.size:,}")
            for method in methods(damping):
                tell(method, problem, exact)


def methods(damping: float) -> list[Method]:
    blocks = [(name, count) for name in ("joint", "layer") for count in (200, 1000, 4000)]
    found: list[Method] = [Dot(part="all"), EKFAC(damping=damping, part="all")]
    found += [EKFAC(damping=damping, part="all", curvature_blocks=name, block_samples=m) for name, m in blocks]
    own = {"damping": damping, "part": "all", "examples": None, "queries": None}
    found += [CG(**own, preconditioner=one, tolerance=1e-3, iterations=300) for one in ("none", "ekfac")]
    return [*found, ASTRA(**own, steps=128), ASTRA(**own, steps=512)]


def tell(method: Method, problem: Problem, exact: np.ndarray) -> None:
    start = time.process_time()
    answer = method.attribute(problem)
    seconds = time.process_time() - start
    found = scores(answer).values
    rank = np.mean([spearmanr(one, wanted).statistic for one, wanted in zip(found, exact, strict=True)])
    notes = f", preconditioner {method.preconditioner}" if isinstance(method, CG) else ""
    if "iterations" in answer:
        notes += f", {int(answer['iterations'].min())} to {int(answer['iterations'].max())} iterations"
    notes += f", residual {answer.attrs['residual']:.2g}" if "residual" in answer.attrs else ""
    print(f"{rank:6.3f}  {seconds:6.1f} s  {method.label}{notes}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
