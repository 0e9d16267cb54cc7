"""A model's layers in their sketches: queries are multiplied by the damped inverse, people are told of d_eff."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.layers import Layers
from tdaexp.curvature.projected import ProjectedLayer
from tdaexp.gradients.sketch_factorised import TwoSidedSketch

log = logging.getLogger(__name__)
FEW = 16
"""Matrices of which each has a line of its own."""


def component_sketches(layers: Layers, sides: Mapping[str, TwoSidedSketch]) -> dict[str, TwoSidedSketch]:
    """The layers' sketches by component: of a fused matrix that of its rows, and those of all its components add up."""
    return {name: sides[one.name].of_rows(rows) for one in layers.layers for name, rows in one.members}


class ProjectedLayers:
    """A model's `layers` in their sketches."""

    def __init__(self, layers: Layers, projected: Sequence[ProjectedLayer]) -> None:
        """`projected` in the order of the layers."""
        self.layers, self.projected = layers, projected

    @property
    def sides(self) -> dict[str, TwoSidedSketch]:
        """Each layer's projection."""
        return {one.layer.name: one.side for one in self.projected}

    def preconditioned(self, columns: Mapping[str, slice], damping: Damping, rows: np.ndarray) -> np.ndarray:
        """Sketches [n, entries] of queries, times (F + λI)⁻¹; `columns` are the entries of each component.

        To each component of a fused matrix goes the whole matrix's product, as it is their sum that is inverted.
        """
        found = np.empty_like(rows)
        for one in self.projected:
            places = [columns[name] for name, _ in one.layer.members]
            whole = sum((torch.from_numpy(rows[:, place]).double() for place in places), torch.zeros((), device="cpu"))
            solved = one.solve(whole, damping).to(torch.from_numpy(rows).dtype).numpy()
            for place in places:
                found[:, place] = solved
        return found

    def notes(self, damping: Damping) -> dict[str, tuple[str, np.ndarray]]:
        """What the answer tells of each component: d_eff of its matrix, and the dimensions of that one's sketch."""
        by_name = {name: one for one in self.projected for name, _ in one.layer.members}
        ordered = [by_name[name] for name in self.layers.components.names]
        return {
            "effective_dimension": ("component", np.array([one.effective(damping) for one in ordered])),
            "dimension": ("component", np.array([one.side.dim for one in ordered])),
        }

    def tell(self, damping: Damping) -> None:
        """Log d_eff beside the dimensions, and where these are too few."""
        known = self.projected[0].spectrum is not None
        source = "" if known else " (of the sketch's own spectrum, which hides what does not fit in)"
        sizes = [one.effective(damping) for one in self.projected]
        told = {
            one.layer.name: f"{one.layer.name}: d_eff {size:.1f}, {one.side.dim} of "
            f"{one.layer.size:,} dimensions ({one.side.k_out} × {one.side.k_in})"
            for one, size in zip(self.projected, sizes, strict=True)
        }
        small = [one.layer.name for one in self.projected if one.too_small(damping)]
        shown = list(told) if len(told) <= FEW else small[:FEW]
        log.info("effective dimensions at the damping: %.1f to %.1f%s", min(sizes), max(sizes), source)
        for name in shown:
            log.info("%s%s", told[name], ": too small" if name in small else "")
        if small:
            log.warning(
                "the sketch is too small for this damping in %d of %d matrices (%s%s): raise method.dimensions, or the "
                "damping",
                *(len(small), len(told), ", ".join(small[:3]), ", …" if len(small) > 3 else ""),
            )
        else:
            log.info("the sketch is large enough for this damping in all %d matrices", len(told))
