"""Fits the curvature of a model over a data set, in passes with bounded memory that survive a kill.

Three phases, each a block store under one folder: `covariance` (A, S and the drawn labels), `eigen`, `lambda` (or
`diagonal` alone). The layers are cut into `partitions`, each of which takes a pass of its own, so that the sums of one
partition are all that is in memory; the data is cut into `saves` chunks, after each of which partial sums are written.
A killed fit goes on at the chunk where it stopped, with the same bits. Loss: sum over an example's tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.covariance import add_second_moment, mirrored
from tdaexp.curvature.eigen import eigenbasis
from tdaexp.curvature.factors_store import MODES, Factors
from tdaexp.curvature.lambdas import add_rotated_squares
from tdaexp.curvature.layers import Layer, Layers
from tdaexp.curvature.monitor import Monitor
from tdaexp.curvature.source import LanguageSource, Source
from tdaexp.data.examples import Examples
from tdaexp.gradients.factors import LinearFactors
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
Sums = dict[str, Tensor]


@dataclass(frozen=True)
class FactorSettings:
    """How factors are fitted: `mode`, `seed` of the drawn labels, `partitions` of the layers, `saves` of the data."""

    mode: str = "ekfac"
    seed: int = 0
    partitions: int = 1
    saves: int = 4

    def __post_init__(self) -> None:
        """Refuse unknown modes and counts below one."""
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES, "method.mode")
        for name in ("partitions", "saves"):
            if getattr(self, name) < 1:
                raise UserError(f"method.{name}={getattr(self, name)}: must be at least 1")


def fit_factors(
    model: PreTrainedModel,
    layers: Layers,
    examples: Examples,
    settings: FactorSettings,
    *,
    store: Path,
    tokens_per_batch: int = 4096,
    pad_id: int = 0,
) -> Factors:
    """Curvature of a causal language model over `examples`; `store` is a folder named after all that it depends on.

    The mode and the damping need not be in the name: modes share what they can. Errors (UserError): an example without
    loss; NaN or Inf in an activation or an output gradient, with layer and example.
    """
    return fit_source(LanguageSource(model, layers, examples, tokens_per_batch, pad_id), settings, store=store)


def fit_source(source: Source, settings: FactorSettings, *, store: Path) -> Factors:
    """As `fit_factors`, for anything that can run its batches."""
    fit = Fit(source, settings, store)
    with source.ready(), torch.no_grad():
        readers = fit.readers() if settings.mode in ("ekfac", "kfac") else {}
        if readers:
            fit.covariance(readers)
            fit.eigen(readers)
        if settings.mode == "ekfac":
            fit.spectrum("lambda", readers)
        elif settings.mode == "diagonal":
            fit.spectrum("diagonal", readers)
    return Factors(store, source.layers, readers, settings.mode, len(source.ids), source.dtype)


class Fit:
    """The phases of one fit."""

    def __init__(self, source: Source, settings: FactorSettings, store: Path) -> None:
        """Cut layers into partitions and batches into chunks."""
        self.source, self.settings, self.store = source, settings, store
        self.partitions = _balanced(source.layers, settings.partitions)
        count = min(settings.saves, len(source.batches))
        self.chunks = [part.tolist() for part in np.array_split(np.arange(len(source.batches)), count)]
        self.kind = str(source.dtype).removeprefix("torch.")
        self._labels: BlockStore | None = None

    def readers(self) -> dict[str, str]:
        """For every layer the first layer that reads the same input, found by running one example."""
        found: dict[str, str] = {}

        def consume(names: list[str], _: list[LinearFactors], __: Tensor) -> None:
            found.update({name: names[0] for name in names})

        names = [layer.name for layer in self.source.layers]
        self.source.run(self.source.batches[0][:1], names, None, self.settings.seed, consume)
        return found

    def covariance(self, readers: dict[str, str]) -> None:
        """Sums of a aᵀ and δ δᵀ over positions, and their number."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.source.layers:
            if readers[layer.name] == layer.name:
                shapes[f"A.{layer.name}"] = (layer.inputs, layer.inputs)
            shapes |= {f"S.{layer.name}": (layer.outputs, layer.outputs), f"n.{layer.name}": ()}

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], valid: Tensor) -> None:
            everything = bool(valid.all())
            for layer, one in zip(layers, factors, strict=True):
                delta = one.deltas.to(self.source.dtype)
                rows = delta.flatten(0, 1) if everything else delta[valid]
                add_second_moment(sums[f"S.{layer.name}"], rows)
                sums[f"n.{layer.name}"] += len(rows)
                if readers[layer.name] == layer.name:
                    inputs = one.inputs.to(self.source.dtype)
                    rows = inputs.flatten(0, 1) if everything else inputs[valid]
                    add_second_moment(sums[f"A.{layer.name}"], rows, one.bias)

        def finish(sums: Sums) -> Sums:
            return {key: mirrored(one) if one.ndim else one for key, one in sums.items()}

        self._phase("covariance", "covariances", shapes, add, finish)

    def eigen(self, readers: dict[str, str]) -> None:
        """Eigenbases of all covariances, one matrix a block."""
        source = Factors(self.store, self.source.layers, readers, "kfac", len(self.source.ids), self.source.dtype)
        wanted = [("S", layer.name, layer.outputs) for layer in self.source.layers]
        wanted += [("A", layer.name, layer.inputs) for layer in self.source.layers if readers[layer.name] == layer.name]
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for side, name, width in wanted:
            arrays[f"{side}.{name}.vectors"] = ((1, width, width), self.kind)
            arrays[f"{side}.{name}.values"] = ((1, width), "float64")
        blocks = BlockStore(self.store / "eigen", arrays, [slice(0, 1)] * len(wanted), compressed=False)
        lowest: dict[str, float] = {}
        with blocks.pending() as missing:
            for block in track(missing, "eigenbases", len(wanted), len(wanted) - len(missing)):
                side, name, _ = wanted[block]
                covariance = source.covariance(name)
                found = eigenbasis(
                    covariance.inputs if side == "A" else covariance.outputs, f"{side} of layer '{name}'"
                )
                if found.lowest < 0:
                    lowest[f"{side} of {name}"] = found.lowest / float(found.values[-1])
                key = f"{side}.{name}"
                vectors = found.vectors.to(self.source.dtype).numpy()
                blocks.write(block, {f"{key}.vectors": vectors[None], f"{key}.values": found.values.numpy()[None]})
        if lowest:
            worst = min(lowest, key=lambda key: lowest[key])
            log.info(
                "eigenvalues below zero set to zero in %d of %d covariances; the lowest, in %s, is %.2g of the largest",
                *(len(lowest), len(wanted), worst, lowest[worst]),
            )

    def spectrum(self, phase: str, readers: dict[str, str]) -> None:
        """Sums of squared per-example gradients: rotated (`lambda`) or as they are (`diagonal`)."""
        mode = "kfac" if phase == "lambda" else "identity"
        bases = Factors(self.store, self.source.layers, readers, mode, len(self.source.ids), self.source.dtype)
        shapes: dict[str, tuple[int, ...]] = {
            f"L.{layer.name}": (layer.outputs, layer.inputs) for layer in self.source.layers
        }

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], _: Tensor) -> None:
            for layer, one in zip(layers, factors, strict=True):
                basis, dtype = bases[layer.name], self.source.dtype
                total = sums[f"L.{layer.name}"]
                q_in, q_out = (None if q is None else q.to(total.device) for q in (basis.q_in, basis.q_out))
                add_rotated_squares(total, one.inputs.to(dtype), one.deltas.to(dtype), one.bias, q_in, q_out)

        self._phase(phase, "Λ" if phase == "lambda" else "diagonal", shapes, add, lambda sums: sums)

    def _phase(self, phase: str, text: str, shapes, add, finish) -> None:  # type: ignore[no-untyped-def]
        """Run one phase's blocks: partition by partition, chunk by chunk; sums [chunk] of every array in `shapes`."""
        count = len(self.chunks)
        arrays = {key: ((count, *shape), self.kind) for key, shape in shapes.items()}
        drawing = self._labels is None
        if drawing:
            rows = max(sum(len(self.source.batches[k]) for k in chunk) for chunk in self.chunks)
            arrays["labels"] = ((count, rows, self.source.label_width), "int32")
        slices = [slice(chunk, chunk + 1) for _ in self.partitions for chunk in range(count)]
        blocks = BlockStore(self.store / phase, arrays, slices, compressed=False)
        self._labels = self._labels or blocks
        with blocks.pending() as missing:
            for block in track(missing, text, len(slices), len(slices) - len(missing)):
                partition, chunk = divmod(block, count)
                layers = self.partitions[partition]
                keys = [key for key in shapes if key.partition(".")[2] in {layer.name for layer in layers}]
                fresh = drawing and partition == 0
                sums, labels = self._chunk(chunk, layers, {key: shapes[key] for key in keys}, add, fresh)
                values = {key: one.cpu().numpy()[None] for key, one in finish(sums).items()}
                if fresh:
                    values["labels"] = labels[None]
                blocks.write(block, values)

    def _chunk(self, chunk, layers, shapes, add, fresh) -> tuple[Sums, np.ndarray]:  # type: ignore[no-untyped-def]
        """Sums over the batches of a chunk, and its labels [rows, L]: drawn when `fresh`, else those stored."""
        assert self._labels is not None
        stored = self._labels.group["labels"]
        labels = np.full(stored.shape[1:], -1, dtype=np.int32) if fresh else stored[chunk]
        known = {layer.name: layer for layer in layers}
        sums: Sums = {}
        first = 0
        for batch in self.chunks[chunk]:
            members = self.source.batches[batch]
            monitor = Monitor([self.source.ids[index] for index in members])

            def consume(names: list[str], factors: list[LinearFactors], valid: Tensor, monitor=monitor) -> None:
                if not sums:
                    device = factors[0].deltas.device
                    sums.update({k: torch.zeros(s, dtype=self.source.dtype, device=device) for k, s in shapes.items()})
                if monitor.passes(names, factors):
                    add(sums, [known[name] for name in names], factors, valid)

            rows = slice(first, first + len(members))
            given = None if fresh else torch.from_numpy(labels[rows]).long()
            drawn = self.source.run(members, list(known), given, self.settings.seed, consume)
            monitor.check()
            labels[rows, : drawn.shape[1]] = drawn.numpy()
            first += len(members)
        return sums, labels


def _balanced(layers: tuple[Layer, ...], count: int) -> list[tuple[Layer, ...]]:
    """Cut the layers, in order, into at most `count` parts of about equal memory."""
    weights = np.cumsum([layer.inputs**2 + layer.outputs**2 + layer.size for layer in layers], dtype=float)
    part = np.minimum((weights / weights[-1] * count - 1e-9).astype(int), count - 1)
    return [tuple(layers[k] for k in np.flatnonzero(part == p)) for p in np.unique(part)]
