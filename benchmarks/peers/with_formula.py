"""EK-FAC of a classifier written out in float64, and two departures from it: to verify where a peer's comes from.

A weight matrix with its bias is [O, I + 1], the bias its last column. A = E[a aᵀ] and S = E[δ δᵀ] over the examples,
with their own labels; Q_A and Q_S hold eigenvectors as columns; Λ = E[(Q_Sᵀ G Q_A)²]; a query's gradient V becomes
Q_S (Q_Sᵀ V Q_A / (Λ + λ)) Q_Aᵀ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from work import Side, Work, losses, main

Factors = tuple[Tensor, Tensor]
"""Inputs with a one [N, I + 1] and output gradients [N, O] of a layer."""


def ekfac(
    work: Work, damping: float, labels: str = "data", transposed: bool = False, flat: bool = False
) -> Callable[[], np.ndarray]:
    """Scores of all pairs; curvature is that of the "data"'s labels, or of those "drawn" by tdaexp.

    `transposed`: Q_A and Q_S stand where their transposes belong, so that gradients are not rotated into the
    eigenbasis. `flat`: V is not [W | b] but the entries of W, then those of b, cut into rows of I + 1.
    """
    sides = factors(work, labels), factors(work, "data"), factors(work, "data", work.queries)

    def job() -> np.ndarray:
        return sum(_layer(*three, damping, transposed, flat) for three in zip(*sides, strict=True)).numpy()

    return job


def _layer(fitted: Factors, train: Factors, queries: Factors, damping: float, transposed: bool, flat: bool) -> Tensor:
    """A layer's part of the scores [query, train]."""
    (inputs, outputs), count = train, len(fitted[0])
    q_in, q_out = (torch.linalg.eigh(one.T @ one / count).eigenvectors for one in fitted)
    if transposed:
        q_in, q_out = q_in.T, q_out.T
    spectrum = sum(
        torch.einsum("no,ni->noi", delta @ q_out, a @ q_in).square().sum(0) / count
        for a, delta in zip(*(one.split(64) for one in fitted), strict=True)
    )
    asked = torch.einsum("no,ni->noi", *reversed(queries))
    asked = _flat(asked) if flat else asked
    solved = q_out @ (q_out.T @ asked @ q_in / (spectrum + damping)) @ q_in.T
    if not flat:
        return torch.einsum("qoi,no,ni->qn", solved, outputs, inputs)
    rows = [
        torch.einsum("qoi,noi->qn", solved, _flat(torch.einsum("no,ni->noi", delta, a)))
        for delta, a in zip(outputs.split(64), inputs.split(64), strict=True)
    ]
    return torch.cat(rows, 1)


def _flat(gradients: Tensor) -> Tensor:
    """[W | b] as W's entries, then b's, in the same shape."""
    weights, bias = gradients[..., :-1], gradients[..., -1]
    return torch.cat([weights.flatten(1), bias], 1).view_as(gradients)


def factors(work: Work, labels: str, side: Side | None = None) -> list[Factors]:
    """Of each layer that counts, over the training examples unless another `side` is given."""
    model, side = work.model().double(), side or work.train
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = [inputs[0].detach(), output]

        return hook

    for name in work.about["modules"]:
        model.get_submodule(name).register_forward_hook(note(name))
    targets = side.drawn if labels == "drawn" else side.targets
    losses(model, Side(side.ids, side.inputs.double(), targets)).sum().backward()
    return [(torch.cat([a, torch.ones(len(a), 1)], 1), output.grad) for a, output in seen.values()]


def run(arguments: list[str] | None = None) -> None:
    """The command line (`work.main`)."""
    main("torch", {"ekfac": ekfac}, arguments)


if __name__ == "__main__":
    run()
