"""CPU time and error of the projections against traker's BasicProjector, on the same 32 gradients.

Each gradient is a 1,280 x 1,250 matrix (1.6 M entries), the sum of 64 outer products, projected to 4,096
dimensions with Rademacher entries, on one thread. Time is CPU time of projecting the batch, the projector
already built: one run for traker unless asked for more, the best of all runs for the others. The error is
that of the 32 x 32 matrix of inner products, |estimate - exact| / |exact| in Frobenius norm: root mean square
over seeds, with its standard error, beside the exact value for a dense Rademacher matrix, which is traker's.
`factorised` starts from the factors and never sees the gradient.

    python benchmarks/projection.py                  # minutes, nearly all of them traker's
    python benchmarks/projection.py --trak-seeds 5   # more runs of traker, for its error
"""

import argparse
import math
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from trak.projectors import BasicProjector, ProjectionType

from tdaexp.gradients.projection import make_sketch

BATCH, TOKENS, D_OUT, D_IN, DIM = 32, 64, 1280, 1250, 4096
GOAL = 50


def factors():
    """Inputs a [32, 64, 1250] and output gradients delta [32, 64, 1280]; the examples share a part."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(BATCH, TOKENS, D_IN, generator=generator)
    delta = torch.randn(BATCH, TOKENS, D_OUT, generator=generator)
    common_a = torch.randn(1, TOKENS, D_IN, generator=generator)
    common_delta = torch.randn(1, TOKENS, D_OUT, generator=generator)
    return a + common_a, delta + common_delta


def projection(kind, seed, a, delta, gradient):
    """A function of no argument that projects the batch to [32, dim]; what can be drawn beforehand is."""
    if kind == "traker":
        projector = BasicProjector(D_OUT * D_IN, DIM, seed, ProjectionType.rademacher, torch.device("cpu"))
        return lambda: projector.project(gradient, model_id=0) / math.sqrt(DIM)
    sketch = make_sketch(kind, "benchmark", (D_OUT, D_IN), DIM, seed)
    if kind == "factorised":
        return lambda: sketch.project_factors(a, delta)
    return lambda: sketch.project_gradient(gradient)


def relative_error(projected, exact):
    projected = projected.double()
    return float((projected @ projected.T - exact).norm() / exact.norm())


def expected_error(gradient, exact):
    """Root mean square of the relative error for independent entries +-1/sqrt(k), from its exact variance."""
    squares = gradient.double().square()
    norms = exact.diagonal()
    variance = (norms[:, None] * norms[None, :] + exact.square() - 2 * squares @ squares.T) / DIM
    return float(variance.sum().sqrt() / exact.norm())


def root_mean_square(errors):
    """Of errors over seeds, with its standard error (by the delta method) where there are several."""
    squares = [error**2 for error in errors]
    root = math.sqrt(statistics.mean(squares))
    if len(errors) == 1:
        return f"{root:.4f} (1 seed)"
    uncertainty = statistics.stdev(squares) / math.sqrt(len(errors)) / (2 * root)
    return f"{root:.4f} ± {uncertainty:.4f} ({len(errors)} seeds)"


def measure(kind, seeds, a, delta, gradient, exact):
    """CPU seconds of one projection, the best of all; the errors over seeds; the dimensions."""
    times, errors = [], []
    for seed in range(seeds):
        project = projection(kind, seed, a, delta, gradient)
        start = time.process_time()
        projected = project()
        times.append(time.process_time() - start)
        errors.append(relative_error(projected, exact))
    return min(times), errors, projected.shape[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trak-seeds", type=int, default=1, help="runs of traker, minutes each")
    parser.add_argument("--seeds", type=int, default=30, help="runs of each of the others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    a, delta = factors()
    gradient = torch.einsum("bto,bti->boi", delta, a).flatten(1)
    exact = gradient.double() @ gradient.double().T

    table = Table("projection", "dimensions", "CPU seconds", "times faster", "error of the Gram matrix", "goal")
    baseline = None
    for kind in ("traker", "srht", "sjlt", "factorised"):
        seeds = arguments.trak_seeds if kind == "traker" else arguments.seeds
        seconds, errors, dim = measure(kind, seeds, a, delta, gradient, exact)
        baseline = baseline or seconds
        ratio = baseline / seconds
        goal = "" if kind == "traker" else f">= {GOAL}: {'met' if ratio >= GOAL else 'MISSED'}"
        table.add_row(kind, str(dim), f"{seconds:.4f}", f"{ratio:.0f}", root_mean_square(errors), goal)
    console = Console(width=120)
    console.print(table)
    console.print(f"error of a dense Rademacher matrix, exact: {expected_error(gradient, exact):.4f}")


if __name__ == "__main__":
    main()
