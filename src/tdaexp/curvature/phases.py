"""The phases of a fit: passes with bounded memory that survive a kill.

Each phase is a block store under one folder: `covariance` (A, S and the drawn labels), `eigen`, `lambda`, or `diagonal`
alone. The layers are cut into partitions, each of which takes a pass of its own, so that the sums of one partition are
all that is in memory; the data is cut into chunks, after each of which partial sums are written. A killed fit goes on
at the chunk where it stopped, with the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdaexp.curvature.covariance import add_second_moment, mirrored
from tdaexp.curvature.eigen import eigenbasis
from tdaexp.curvature.factors_store import Factors, HeldBases
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.lambdas import add_rotated_squares
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.monitor import Monitor
from tdaexp.gradients.factors import LinearFactors
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.oom_split import Shrinking, two
from tdaexp.runtime.rehearsal import aside, sampled

log = logging.getLogger(__name__)
Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """What a pass adds up: arrays named `kind.layer` of the given shapes.

    `enter(layers)` is called before a pass over layers; `add(sums, layers, factors, places)` takes layers that read
    one input and which positions are real (None: all); `finish` is applied to the sums of a chunk.
    """

    shapes: dict[str, tuple[int, ...]]
    add: Callable[[Sums, list[Layer], list[LinearFactors], Tensor | None], None]
    finish: Callable[[Sums], Sums] = dict
    enter: Callable[[tuple[Layer, ...]], None] = lambda _: None
    layers: tuple[Layer, ...] = ()

    def part(self, layers: tuple[Layer, ...]) -> Phase:
        """The phase for some layers."""
        names = {layer.name for layer in layers}
        shapes = {key: shape for key, shape in self.shapes.items() if key.partition(".")[2] in names}
        return replace(self, shapes=shapes, layers=layers)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Batches whose sums are stored together, in one phase; `labels` [rows, L] by example, to be drawn when `fresh`."""

    batches: list[list[int]]
    phase: Phase
    labels: np.ndarray
    fresh: bool

    def finer(self) -> list[Chunk]:
        """The chunk in batches of half the size; nothing where all hold one example."""
        if all(len(batch) == 1 for batch in self.batches):
            return []
        return [replace(self, batches=[piece for batch in self.batches for piece in two(batch) or [batch]])]


class Phases:
    """The phases of one fit."""

    def __init__(self, source: FisherSamples, seed: int, partitions: int, saves: int, store: Path) -> None:
        """Cut layers into partitions and batches into chunks; `seed` is that of the drawn labels."""
        self.source, self.seed, self.store = source, seed, store
        self.partitions = _balanced(source.layers, partitions)
        count = min(saves, len(source.batches))
        self.chunks = [part.tolist() for part in np.array_split(np.arange(len(source.batches)), count)]
        self._labels: Any = None
        self._summed = Shrinking(self._chunk, Chunk.finer, lambda sums: sums[0])

    def readers(self) -> dict[str, str]:
        """For every layer the first layer that reads the same input, found by running one example."""
        found: dict[str, str] = {}

        def consume(names: list[str], _: list[LinearFactors], __: Tensor | None) -> None:
            found.update({name: names[0] for name in names})

        names = [layer.name for layer in self.source.layers]
        run = Shrinking(lambda one: self.source.run(one, names, None, self.seed, consume), two, lambda parts: parts[0])
        with aside():
            run(self.source.batches[0][:1])
        return found

    def covariance(self, readers: dict[str, str]) -> None:
        """Sums of a aᵀ and δ δᵀ over the positions at which a layer runs, and their number."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.source.layers:
            if readers[layer.name] == layer.name:
                shapes[f"A.{layer.name}"] = (layer.inputs, layer.inputs)
            shapes |= {f"S.{layer.name}": (layer.outputs, layer.outputs), f"n.{layer.name}": ()}

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], places: Tensor | None) -> None:
            for layer, one in zip(layers, factors, strict=True):
                read, rows = _rows(one.inputs, places), _rows(one.deltas, places)
                add_second_moment(sums[f"S.{layer.name}"], rows)
                sums[f"n.{layer.name}"] += read.any(1).sum() if layer.routed else len(rows)
                if readers[layer.name] == layer.name:
                    add_second_moment(sums[f"A.{layer.name}"], read, one.bias)

        def finish(sums: Sums) -> Sums:
            return {key: mirrored(one) if one.ndim else one for key, one in sums.items()}

        self.run("covariance", "covariances", Phase(shapes, add, finish))

    def eigen(self, readers: dict[str, str]) -> None:
        """Eigenbases of all covariances, one matrix a block."""
        source = Factors(self.store, self.source.layers, readers, "kfac", len(self.source.ids), self.source.dtype)
        wanted = [("S", layer.name, layer.outputs) for layer in self.source.layers]
        wanted += [("A", layer.name, layer.inputs) for layer in self.source.layers if readers[layer.name] == layer.name]
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for side, name, width in wanted:
            arrays[f"{side}.{name}.vectors"] = ((1, width, width), self._kind((width, width)))
            arrays[f"{side}.{name}.values"] = ((1, width), "float64")
        blocks = BlockStore(self.store / "eigen", arrays, [slice(0, 1)] * len(wanted), compressed=False)
        lowest: dict[str, float] = {}
        with blocks.pending() as missing:
            for block in blocks.each(missing, "eigenbases", lambda block: float(wanted[block][2]) ** 3):
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
        bases = HeldBases(self.store, readers, self.source.dtype) if phase == "lambda" else None
        shapes: dict[str, tuple[int, ...]] = {
            f"L.{layer.name}": (layer.outputs, layer.inputs) for layer in self.source.layers
        }

        def add(sums: Sums, layers: list[Layer], factors: list[LinearFactors], _: Tensor | None) -> None:
            for layer, one in zip(layers, factors, strict=True):
                total, dtype = sums[f"L.{layer.name}"], self.source.dtype
                q_in, q_out = bases.of(layer.name, total.device) if bases else (None, None)
                add_rotated_squares(total, one.inputs.to(dtype), one.deltas.to(dtype), one.bias, q_in, q_out)

        whole = Phase(shapes, add, enter=bases.enter) if bases else Phase(shapes, add)
        self.run(phase, "Λ" if phase == "lambda" else "diagonal", whole)

    def run(self, name: str, text: str, phase: Phase) -> None:
        """Run the blocks of a phase, partition by partition and chunk by chunk. The first phase draws the labels."""
        count, drawing = len(self.chunks), self._labels is None
        arrays = {key: ((count, *shape), self._kind(shape)) for key, shape in phase.shapes.items()}
        if drawing:
            rows = max(sum(len(self.source.batches[k]) for k in chunk) for chunk in self.chunks)
            arrays["labels"] = ((count, rows, self.source.label_width), "int32")
        slices = [slice(chunk, chunk + 1) for _ in self.partitions for chunk in range(count)]
        blocks = BlockStore(self.store / name, arrays, slices, compressed=False)
        stored = self._labels = blocks.group["labels"] if self._labels is None else self._labels
        # Labels are drawn with the first partition, so all of them are there before any other begins.
        for numbers in (range(count), range(count, len(slices))) if drawing else (range(len(slices)),):
            self._fill(blocks, numbers, text, phase, stored, drawing)

    def _fill(self, blocks: BlockStore, numbers: range, text: str, phase: Phase, stored: Any, drawing: bool) -> None:
        """Compute some blocks of a phase."""
        count = len(self.chunks)
        with blocks.pending(numbers) as missing:
            for block in blocks.each(missing, text, *self._weights()):
                partition, chunk = divmod(block, count)
                fresh = drawing and partition == 0
                labels = np.full(stored.shape[1:], -1, dtype=np.int32) if fresh else stored[chunk]
                batches = [self.source.batches[k] for k in self.chunks[chunk]]
                values = self._summed(Chunk(batches, phase.part(self.partitions[partition]), labels, fresh))
                blocks.write(block, values | ({"labels": labels[None]} if fresh else {}))

    def _weights(self) -> tuple[Callable[[int], float], Callable[[int], float]]:
        """Positions and examples of a block of a phase; partitions are about equal."""
        batches = [[self.source.batches[k] for k in chunk] for chunk in self.chunks]
        size = [sum(map(self.source.size, chunk)) for chunk in batches]
        return lambda block: size[block % len(size)], lambda block: sum(map(len, batches[block % len(size)]))

    def _chunk(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Sums [1, ...] over the batches of a chunk; its labels are filled in when they are `fresh`, else used."""
        phase, labels, fresh = chunk.phase, chunk.labels, chunk.fresh
        known = {layer.name: layer for layer in phase.layers}
        phase.enter(phase.layers)
        sums: Sums = {}
        later = Deferred()
        ends = np.cumsum([len(batch) for batch in chunk.batches]).tolist()
        placed = [(batch, end - len(batch)) for batch, end in zip(chunk.batches, ends, strict=True)]
        for members, first in sampled(placed, lambda one: self.source.size(one[0]), lambda one: len(one[0])):
            monitor = Monitor([self.source.ids[index] for index in members])

            def consume(
                names: list[str], factors: list[LinearFactors], places: Tensor | None, monitor: Monitor = monitor
            ) -> None:
                for key, shape in phase.shapes.items() if not sums else ():
                    kind = getattr(torch, self._kind(shape))
                    sums[key] = torch.zeros(shape, dtype=kind, device=factors[0].deltas.device)
                monitor.watch(names, factors)
                phase.add(sums, [known[name] for name in names], factors, places)

            rows = slice(first, first + len(members))
            given = None if fresh else torch.from_numpy(labels[rows]).long()
            drawn = self.source.run(members, list(known), given, self.seed, consume)
            later.add(monitor.check, monitor.sums())
            later.add(partial(_write_labels, labels[rows]), drawn)
        later.flush()
        return {key: one.cpu().numpy()[None] for key, one in phase.finish(sums).items()}

    def _kind(self, shape: tuple[int, ...]) -> str:
        """Type of an array: counts are exact."""
        return str(self.source.dtype).removeprefix("torch.") if shape else "float64"


def _write_labels(rows: np.ndarray, drawn: np.ndarray) -> None:
    rows[:, : drawn.shape[1]] = drawn


def _rows(values: Tensor, places: Tensor | None) -> Tensor:
    """The real positions of [B, T, d]: [n, d]."""
    rows = values.flatten(0, 1)
    return rows if places is None else rows.index_select(0, places)


def _balanced(layers: tuple[Layer, ...], count: int) -> list[tuple[Layer, ...]]:
    """Cut the layers, in order, into at most `count` parts of about equal memory."""
    weights = np.cumsum([layer.inputs**2 + layer.outputs**2 + layer.size for layer in layers], dtype=float)
    part = np.minimum((weights / weights[-1] * count - 1e-9).astype(int), count - 1)
    return [tuple(layers[k] for k in np.flatnonzero(part == p)) for p in np.unique(part)]
