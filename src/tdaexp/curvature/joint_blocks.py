"""Curvature in blocks larger than one matrix: EK-FAC, corrected where gradients of examples say what it leaves out.

    G_b = (1 - ρ) E_b + ρ/M Σ_m u_m u_mᵀ

for a block b of matrices (q, k, v and o; gate, up and down; a whole layer), with E_b the EK-FAC of its matrices and M
`samples` u_m whose second moment is the GGN (`probes`). Both terms have the GGN's trace on average; E_b knows every
direction and no correlation between matrices, the second term knows all correlations of M directions: this is the
linear shrinkage of a sample covariance towards a structured target (Ledoit and Wolf 2004). Its share is ρ = M / (M +
d), with d = Σ Λ / (Λ + λ) the directions that the damping leaves, as the samples' relative error is about √(d / M).
Positive semi-definite, and with M → ∞ the exact block. By Woodbury's identity, with D each matrix's damping, B =
((1 - ρ) E_b + D)⁻¹ and U [M, n],

    (G_b + D)⁻¹ v = B (v - Uᵀ (M/ρ I + U B Uᵀ)⁻¹ U B v)

Memory: 2 M n numbers for all blocks together. Cost: M passes, M² n multiply-adds once, and per query 2 M n, beside
EK-FAC's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.factored_inverse import Damped, factored_inverse
from tdaexp.curvature.factors_store import Factors
from tdaexp.curvature.layers import Layer, Layers
from tdaexp.curvature.precondition import LayerFactors
from tdaexp.curvature.probes import probe_gradients
from tdaexp.gradients.passes import fitted_gradients
from tdaexp.gradients.vectors import VectorSpace
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.limits import refuse_beyond
from tdaexp.runtime.rehearsal import current, repeated

BLOCKS = ("matrix", "joint", "layer")
ROWS_AT_ONCE = 16
"""Samples that are multiplied by B at a time."""


@dataclass(frozen=True)
class JointSettings:
    """`blocks` (`matrix`, `joint`, `layer`), number of `samples` M, and the `seed` of their noise."""

    blocks: str
    samples: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse unknown blocks and less than one sample."""
        if self.blocks not in BLOCKS:
            raise unknown("curvature_blocks", self.blocks, BLOCKS, "method.curvature_blocks")
        if self.samples < 1:
            raise UserError(f"method.block_samples={self.samples}: must be at least 1")

    @property
    def note(self) -> str:
        """What a label tells."""
        return "" if self.blocks == "matrix" else f"{self.blocks} blocks of {self.samples} samples"


def blocks_of(layers: Layers, kind: str) -> list[list[Layer]]:
    """The matrices that share a block: `joint` those of an attention or an MLP, `layer` those of a transformer's layer.

    What is in no layer (a head) is a block of its own; a network without named layers is one layer. Errors (UserError):
    such a network has no attention and no MLP by name.
    """
    words = [layer.name.split(".") for layer in layers.layers]
    named = any(own[0] == "layers" for own in words)
    if kind == "joint" and not named:
        raise UserError(
            "method.curvature_blocks=joint: this network has no attention and no MLP by name; take layer, which is "
            "then the whole network, or matrix"
        )
    found: dict[tuple[str, ...], list[Layer]] = {}
    for layer, own in zip(layers.layers, words, strict=True):
        length = {"matrix": len(own), "joint": 3, "layer": 2}[kind]
        key = tuple(own[:length]) if own[0] == "layers" else () if kind == "layer" and not named else tuple(own)
        found.setdefault(key, []).append(layer)
    return list(found.values())


@dataclass(frozen=True, eq=False)
class _Block:
    """Where a block lies in the vectors, its samples U [M, n], B, and the Cholesky factor [M, M] of M/ρ I + U B Uᵀ."""

    columns: Tensor
    samples: Tensor
    base: Callable[[Tensor], Tensor]
    factor: Tensor

    def solve(self, vectors: Tensor) -> Tensor:
        """(G_b + D)⁻¹ v of the block's entries [K, n]."""
        met = (self.base(vectors) @ self.samples.T).double()
        weights = torch.cholesky_solve(met.T, self.factor).T.to(vectors)
        return self.base(vectors - weights @ self.samples)


def check_memory(
    settings: JointSettings, layers: Layers, dtype: torch.dtype, device: torch.device | None = None
) -> None:
    """Refuse (UserError) samples that do not fit into memory, twice over."""
    if current() is None:  # a plan may be of another machine
        size = sum(layer.size for layer in layers.layers)
        what = f"method.curvature_blocks={settings.blocks} with method.block_samples={settings.samples}"
        remedy = "take fewer samples, fewer components (method.part), or method.curvature_blocks=matrix"
        refuse_beyond(2.0 * settings.samples * size * dtype.itemsize, what, remedy, device)


def sampled_inverse(
    problem: Problem, layers: Layers, factors: Factors, settings: JointSettings, damping: Damping
) -> Callable[[Tensor], Tensor]:
    """(G_b + D)⁻¹ of a problem's model, as a function of vectors [K, n] of the layers' components.

    Errors (UserError): the samples do not fit into memory; see `blocks_of` and `probe_gradients`.
    """
    blocks, gradients = blocks_of(layers, settings.blocks), fitted_gradients(problem, layers.components)
    space = VectorSpace(problem.model, layers.components)
    check_memory(settings, layers, gradients.dtype, gradients.device)
    samples = probe_gradients(gradients, settings.samples, settings.seed, problem.compute.tokens_per_batch)
    return joint_inverse(factors, blocks, space, samples, damping=damping)


def joint_inverse(
    factors: Factors,
    blocks: Sequence[Sequence[Layer]],
    space: VectorSpace,
    samples: Tensor,
    *,
    damping: Damping,
) -> Callable[[Tensor], Tensor]:
    """(G_b + D)⁻¹ of all blocks, as a function of vectors [K, n] of the `space`.

    `samples` U [M, n] of the space, `damping` of each matrix as without blocks. Errors (UserError): as `Damping.of`.
    """
    places = dict(zip(space.components.names, space.slices, strict=True))
    made = [_block(factors, list(block), places, samples, damping) for block in blocks]

    def inverse(vectors: Tensor) -> Tensor:
        found = torch.empty_like(vectors)
        for block in made:
            found[:, block.columns] = block.solve(vectors[:, block.columns])
        return found

    return inverse


def _block(
    factors: Factors, layers: list[Layer], places: dict[str, slice], samples: Tensor, damping: Damping
) -> _Block:
    device, own, width = samples.device, {}, 0
    columns: list[Tensor] = []
    for name in (name for layer in layers for name, _ in layer.members):
        place = places[name]
        columns.append(torch.arange(place.start, place.stop, device=device))
        own[name] = slice(width, width + place.stop - place.start)
        width = own[name].stop
    where = torch.cat(columns)
    rows = samples[:, where]
    share, damped = _shrunk([(layer, factors[layer.name]) for layer in layers], damping, len(rows), device)
    base = factored_inverse(damped, own)
    gram = torch.diag(torch.full((len(rows),), len(rows) / share, dtype=torch.float64, device=device))
    for start in repeated(range(0, len(rows), ROWS_AT_ONCE)):
        gram[start : start + ROWS_AT_ONCE] += (base(rows[start : start + ROWS_AT_ONCE]) @ rows.T).double()
    return _Block(where, rows, base, torch.linalg.cholesky((gram + gram.T) / 2))


def _shrunk(
    matrices: list[tuple[Layer, LayerFactors]], damping: Damping, samples: int, device: torch.device
) -> tuple[float, list[Damped]]:
    """ρ, and (1 - ρ) E of each matrix with the damping that it has by itself."""
    kept, amounts, spectra = 0.0, [], []
    for layer, one in matrices:
        assert one.spectrum is not None
        amount = damping.of(one.spectrum, layer.name, one.rounding)
        kept += float((one.spectrum / (one.spectrum + amount)).sum())
        amounts.append(Damping(amount))
        spectra.append(one.spectrum)
    share = samples / (samples + kept)
    return share, [
        (layer, replace(one, spectrum=(1 - share) * own).to(device), amount)
        for (layer, one), own, amount in zip(matrices, spectra, amounts, strict=True)
    ]
