"""Fitted factors on disk, read layer by layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.layers import Layer
from tdaexp.curvature.precondition import LayerFactors
from tdaexp.runtime.blockstore import opened
from tdaexp.runtime.deferred import send
from tdaexp.runtime.errors import unknown

MODES = ("ekfac", "kfac", "diagonal", "identity")


@dataclass(frozen=True)
class Covariance:
    """`inputs` A [I, I] and `outputs` S [O, O], means over `tokens` positions, float64."""

    inputs: Tensor
    outputs: Tensor
    tokens: float


class Factors:
    """Curvature of a model over a data set, by layer; read from the store when asked for.

    `examples` is N. At most `memory` bytes of factors are kept between calls (the last used stay).
    """

    def __init__(
        self,
        store: Path,
        layers: tuple[Layer, ...],
        readers: dict[str, str],
        mode: str,
        examples: int,
        dtype: torch.dtype,
        memory: float = 2e9,
    ) -> None:
        """`store` was filled by `fit_factors`; `readers` maps each layer to the layer whose A it shares."""
        self.store, self.mode, self.examples, self.dtype, self.memory = store, mode, examples, dtype, memory
        self.layers = {layer.name: layer for layer in layers}
        self._shared = readers
        self._held: OrderedDict[str, LayerFactors] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """Layer names in the model's order."""
        return list(self.layers)

    def precondition(self, name: str, gradient: Tensor, damping: Damping) -> Tensor:
        """(G + λI)⁻¹ applied to a layer's gradients [..., O, I], as a new tensor.

        Errors (UserError): unknown layer, singular curvature.
        """
        return self[name].precondition(gradient, damping)

    def __getitem__(self, name: str) -> LayerFactors:
        """A layer's factors, in the dtype that they were fitted in. Errors (UserError): unknown layer."""
        if name not in self.layers:
            raise unknown("layer", name, self.layers, "the fitted factors")
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        factors = self._read(name)
        self._held[name] = factors
        while len(self._held) > 1 and sum(one.bytes for one in self._held.values()) > self.memory:
            self._held.popitem(last=False)
        return factors

    def covariance(self, name: str) -> Covariance:
        """A and S of a layer, zero where nothing reached it. Modes `ekfac` and `kfac` only."""
        group = self._open("covariance")
        shared = self._shared[name]
        tokens = max(1.0, float(group[f"n.{name}"][:].sum()))
        a, s = (chunk_sum(group[key]) for key in (f"A.{shared}", f"S.{name}"))
        return Covariance(a / tokens, s / tokens, tokens)

    def labels(self) -> Tensor:
        """The drawn labels, chunk by chunk as they were fitted: [chunks, rows, L], -1 where there is none."""
        return torch.from_numpy(self._open("diagonal" if self.mode == "diagonal" else "covariance")["labels"][:])

    def _read(self, name: str) -> LayerFactors:
        if self.mode == "identity":
            return LayerFactors(name, None, None, None)
        if self.mode == "diagonal":
            return LayerFactors(name, None, None, self._mean("diagonal", name))
        group, shared = self._open("eigen"), self._shared[name]
        keys = (f"S.{name}", f"A.{shared}")
        q_out, q_in = (_vectors(self.store, key, self.dtype) for key in keys)
        if self.mode == "ekfac":
            return LayerFactors(name, q_out, q_in, self._mean("lambda", name))
        outputs, inputs = (torch.from_numpy(group[f"{key}.values"][0]) for key in keys)
        tokens = float(self._open("covariance")[f"n.{name}"][:].sum())
        # Tokens of an example count as independent in K-FAC: its summed gradient's variance is T times a token's.
        spectrum = torch.outer(outputs, inputs) * (tokens / self.examples)
        return LayerFactors(name, q_out, q_in, spectrum.to(self.dtype), squares=False)

    def _mean(self, phase: str, name: str) -> Tensor:
        return (chunk_sum(self._open(phase)[f"L.{name}"]) / self.examples).to(self.dtype)

    def _open(self, phase: str) -> Any:
        return opened(self.store / phase)


def chunk_sum(array: Any) -> Tensor:
    """Sum of the chunks' partial sums [chunks, ...] in float64, one in memory at a time."""
    total = torch.from_numpy(array[0]).double()
    for chunk in range(1, array.shape[0]):
        total += torch.from_numpy(array[chunk])
    return total


class HeldBases:
    """Eigenvectors of some layers at a time, on a device: read once, however many batches meet them.

    They are as large as the covariances of these layers.
    """

    def __init__(self, store: Path, readers: dict[str, str], dtype: torch.dtype) -> None:
        """`store` and `readers` as for `Factors`."""
        self.store, self.readers, self.dtype = store, readers, dtype
        self._layers: tuple[Layer, ...] = ()
        self._held: dict[str, Tensor] = {}

    def enter(self, layers: tuple[Layer, ...]) -> None:
        """Forget all others."""
        if layers != self._layers:
            self._held.clear()
        self._layers = layers

    def of(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Eigenvectors of A [I, I] and of S [O, O] of a layer, as columns."""
        for key in (keys := (f"A.{self.readers[name]}", f"S.{name}")):
            if key not in self._held:
                self._held[key] = send(_vectors(self.store, key, self.dtype), device)
        return self._held[keys[0]], self._held[keys[1]]


def _vectors(store: Path, key: str, dtype: torch.dtype) -> Tensor:
    group = opened(store / "eigen")
    return torch.from_numpy(group[f"{key}.vectors"][0]).to(dtype)
