"""The curvature of weight matrices in a few directions of each: two-sided projections, and the Fisher matrix in them.

Source: Choe et al. 2024 (LoGra), section 3. A matrix's gradient G [O, I] becomes φ = vec(P_oᵀ G P_i) [k], and its
curvature the small F = E[φ φᵀ] [k, k], with labels drawn from the model. With λ the damping, φ(q)ᵀ (F + λI)⁻¹ φ(z)
stands for the influence through that matrix. It is faithful where k exceeds the effective dimension
d_eff(λ) = Σ σ / (σ + λ) over the eigenvalues σ of the whole matrix's curvature: directions beyond it are damped away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factors_store import Factors, chunk_sum
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.phases import Phase, Phases, Sums
from tdaexp.gradients.factors import LinearFactors
from tdaexp.gradients.features import project
from tdaexp.gradients.projection import make_sketch
from tdaexp.gradients.sketch_factorised import TwoSidedSketch, factor_dimensions
from tdaexp.runtime.blockstore import opened
from tdaexp.runtime.errors import UserError

SATURATED = 0.5
"""Of a sketch's dimensions may be effective in its own spectrum: with more, it hides what does not fit in."""


def leading_sides(factors: Factors, layer: Layer, dimensions: int) -> TwoSidedSketch:
    """The projection on the eigenvectors of S [O, k_out] and A [I, k_in] in which a layer's curvature is largest.

    k_out k_in is at most `dimensions`, near-square. A direction's curvature is its row's or column's sum of the fitted
    eigenvalues [O, I].
    """
    fitted = factors[layer.name]
    assert fitted.q_out is not None and fitted.q_in is not None and fitted.spectrum is not None  # ekfac or kfac
    k_out, k_in = factor_dimensions(dimensions, layer.outputs, layer.inputs)
    rows, columns = (fitted.spectrum.sum(axis) for axis in (1, 0))
    return TwoSidedSketch(_largest(fitted.q_out, rows, k_out), _largest(fitted.q_in, columns, k_in))


def random_sides(layer: Layer, dimensions: int, seed: int) -> TwoSidedSketch:
    """The same with matrices of random signs, scaled so that products are kept on average."""
    found = make_sketch("factorised", layer.name, (layer.outputs, layer.inputs), dimensions, seed)
    assert isinstance(found, TwoSidedSketch)
    return found


def _largest(vectors: Tensor, sizes: Tensor, count: int) -> Tensor:
    """The columns of an eigenbasis [d, d] with the largest of their sizes [d], largest first; ties by column."""
    return vectors[:, torch.argsort(sizes, descending=True, stable=True)[:count]].contiguous()


def fit_projected(
    source: FisherSamples, sides: Mapping[str, TwoSidedSketch], seed: int, saves: int, store: Path
) -> dict[str, Tensor]:
    """F [k, k] float64 of each layer: the mean of φ φᵀ over the samples' examples, of losses summed over tokens.

    `store` is a folder named after all that it depends on; the pass is saved `saves` times.
    """
    shapes: dict[str, tuple[int, ...]] = {f"F.{name}": (side.dim, side.dim) for name, side in sides.items()}

    def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], _: Tensor | None) -> None:
        for layer, one in zip(layers, factors, strict=True):
            sketched = project(one, sides[layer.name])
            sums[f"F.{layer.name}"].addmm_(sketched.T, sketched)

    with source.ready(), torch.no_grad():
        Phases(source, seed, 1, saves, store).run("projected", "projected curvature", Phase(shapes, add))
    group = opened(store / "projected")
    return {name: chunk_sum(group[f"F.{name}"]) / len(source.ids) for name in sides}


@dataclass(frozen=True, eq=False)
class ProjectedLayer:
    """One layer in its sketch `side`: `fisher` F [k, k] float64, averaged over so many `examples`.

    `spectrum` [O, I] are the eigenvalues of the layer's whole curvature, None where they are not known.
    """

    layer: Layer
    side: TwoSidedSketch
    fisher: Tensor
    examples: int
    spectrum: Tensor | None

    def amount(self, damping: Damping) -> float:
        """λ. A mean eigenvalue is that of the whole matrix's curvature, as for EK-FAC; where it is not known it follows
        from the trace of F, which random sides keep on average.
        """
        if self.spectrum is not None:
            return damping.amount(float(self.spectrum.mean()))
        return damping.amount(float(self.fisher.trace()) / self.layer.size)

    def solve(self, rows: Tensor, damping: Damping) -> Tensor:
        """(F + λI)⁻¹ applied to rows [n, k] float64. Errors (UserError): there is no damping, and F is singular."""
        amount, name = self.amount(damping), self.layer.name
        damped = self.fisher + amount * torch.eye(self.side.dim, dtype=self.fisher.dtype, device=self.fisher.device)
        try:
            root = torch.linalg.cholesky(damped)
        except torch.linalg.LinAlgError:
            root = None
        pivots = None if root is None else root.diagonal()
        if pivots is None or float(pivots.min()) < torch.finfo(torch.float32).eps * float(pivots.max()):
            raise UserError(
                f"layer '{name}': {self.side.dim} dimensions of {self.examples} examples leave the projected curvature "
                f"singular at a damping of {amount:g}; set method.relative_damping=0.1, or fewer method.dimensions"
            )
        return torch.cholesky_solve(rows.T, root).T

    def effective(self, damping: Damping) -> float:
        """d_eff(λ) = Σ σ / (σ + λ): of the whole matrix's spectrum, else of F's, which is at most k."""
        amount = self.amount(damping)
        values = self.spectrum.double() if self.spectrum is not None else self._own
        return float((values / (values + amount)).nan_to_num(0.0).sum())

    def too_small(self, damping: Damping) -> bool:
        """Whether the sketch has fewer dimensions than are effective at λ; where F's own spectrum alone is known,
        whether that is more than half full.
        """
        room = self.side.dim * (1.0 if self.spectrum is not None else SATURATED)
        return self.side.dim < self.layer.size and self.effective(damping) > room

    @cached_property
    def _own(self) -> Tensor:
        """Eigenvalues of F."""
        return torch.linalg.eigvalsh(self.fisher).clamp(min=0)
