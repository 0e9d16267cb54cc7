"""What building reads of a command's configuration, and what it builds with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tdaexp.data.records import Corpus
from tdaexp.problem import Problem
from tdaexp.runtime.clock import Clock
from tdaexp.training.settings import FitSettings


class Trainer(Protocol):
    """Where and how passes are run; the values are those of `tdaexp.app.config.Trainer`."""

    strategy: str
    accelerator: str
    precision: str
    tokens_per_batch: int
    cache_gb: float
    fit: FitSettings
    finetune: FitSettings


class Named(Protocol):
    """A model, data for it, and how it is trained; `model` and `dataset` are objects of their YAML's classes."""

    model: Any
    dataset: Any
    seed: int
    cache_dir: str

    @property
    def trainer(self) -> Trainer:
        """Where and how."""


class Method(Protocol):
    """What building asks of a method (`tdaexp.methods.base`)."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def wants_checkpoints(self) -> bool:
        """Whether a training must keep the checkpoints on its way."""

    @property
    def wants_state(self) -> bool:
        """Whether it must keep AdamW's state with them."""

    @property
    def decomposes(self) -> bool:
        """Whether it is given a recorded training, or a list of checkpoints."""


class Described(Named, Protocol):
    """What makes a problem of them: which pairs are asked about, and how a model writes."""

    candidates: Any
    decoding: Any


class Asked(Described, Protocol):
    """What `attribute` is given besides."""

    @property
    def method(self) -> Method:
        """Who will look at the problem."""


@dataclass(frozen=True)
class Training:
    """What a training left: its `folder`, measures after single steps, and the last of them."""

    folder: Path
    curves: list[tuple[int, dict[str, float]]]
    metrics: dict[str, float]


class Builder(Protocol):
    """Builds the problem that one kind of configuration describes."""

    @property
    def corpus(self) -> Corpus | None:
        """The data, where it is of texts, read before anything is loaded. Errors (UserError): what cannot be."""

    def problem(self, clock: Clock) -> Problem:
        """The problem, models loaded or trained; the `clock` is told of each stage."""
