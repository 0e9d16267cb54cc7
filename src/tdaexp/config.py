"""The typed schema of the three commands: names and types of every key; the values are in `conf/`.

The groups model, dataset, candidates and method are open: their YAML names a dataclass (`_target_`), and its
fields are the schema. Everything else is declared here. Nothing in this file knows Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdaexp.runtime.errors import UserError, unknown

NOT_PART_OF_THE_RUN = ("resume", "logger", "cache_dir")
"""Root keys that change where and how a run is watched, not what it computes: no part of its fingerprint."""

REPLACED_BY_PRODUCTS = ("model", "dataset", "candidates")
"""Groups that a run on stored products does not read."""


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown("value", value, choices, key)


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{key}: must be greater than 0, not {value}")


@dataclass
class Fit:
    """How a model is trained: AdamW with a linear warm-up.

    `steps` optimiser steps of `batch_size` examples; `lr` peak learning rate, reached after `warmup` steps;
    `weight_decay` as in AdamW; `clip` maximum gradient norm (0 = none); a checkpoint every `checkpoint_every`
    steps, of which `keep` says whether the `last` or `all` are kept.
    """

    steps: int = 600
    batch_size: int = 32
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    checkpoint_every: int = 100
    keep: str = "last"
    clip: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        _choice("trainer.fit.keep", self.keep, ("last", "all"))
        for name in ("steps", "batch_size", "lr", "checkpoint_every"):
            _positive(f"trainer.fit.{name}", getattr(self, name))


@dataclass
class Trainer:
    """Where and how passes through the model are run.

    `accelerator` auto | cpu | cuda; `precision` float32 | bfloat16 | float64; `tokens_per_batch` bounds a
    batch's padded size (tokens); `cache_gb` memory for captured factors (GB); CPU `threads` (0 = leave them).
    """

    accelerator: str = "auto"
    precision: str = "float32"
    tokens_per_batch: int = 4096
    cache_gb: float = 2.0
    threads: int = 0
    fit: Fit = field(default_factory=Fit)

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes that cannot be."""
        _choice("trainer.accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        _choice("trainer.precision", self.precision, ("float32", "bfloat16", "float64"))
        _positive("trainer.tokens_per_batch", self.tokens_per_batch)
        if self.cache_gb < 0 or self.threads < 0:
            raise UserError("trainer.cache_gb, trainer.threads: must not be negative")


@dataclass
class Logger:
    """Where a run is mirrored: `kind` none | csv | wandb; the other keys are wandb's own.

    `mode` offline | online | disabled. Jobs of a sweep share the sweep's name as `group` unless one is given.
    """

    kind: str = "wandb"
    mode: str = "offline"
    project: str = "tdaexp"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse unknown kinds and modes."""
        _choice("logger.kind", self.kind, ("none", "csv", "wandb"))
        _choice("logger.mode", self.mode, ("offline", "online", "disabled"))


@dataclass
class Metric:
    """How an influence store is judged.

    `bootstrap` resamples of the queries for an interval at level `confidence`; `folds` of the estimate on
    queries that a selection has not seen; `top_k` training texts are shown per query; `plots`: draw pictures.
    """

    bootstrap: int = 2000
    confidence: float = 0.95
    folds: int = 5
    top_k: int = 5
    plots: bool = True

    def __post_init__(self) -> None:
        """Refuse counts and levels that have no meaning."""
        for name in ("bootstrap", "top_k"):
            _positive(f"metric.{name}", getattr(self, name))
        if self.folds < 2:
            raise UserError(f"metric.folds: must be at least 2, not {self.folds}")
        if not 0 < self.confidence < 1:
            raise UserError(f"metric.confidence: must lie between 0 and 1, not {self.confidence}")


@dataclass
class TrainConfig:
    """Keys of `train.py`; model and dataset hold instances of the classes that their YAML names."""

    model: Any = field(metadata={"group": True})
    dataset: Any = field(metadata={"group": True})
    trainer: Trainer
    logger: Logger
    seed: int = 0
    resume: bool = False
    cache_dir: str = "cache"


@dataclass
class AttributeConfig:
    """Keys of `attribute.py`; model, dataset, candidates and method hold objects of their YAML's classes.

    `budget` is the fraction of parameters (select) or dimensions (project) that a surrogate may use, `products`
    a file of stored component products that replaces model, dataset and candidates, `query_sets` the names
    of the query sets to score (empty = all).
    """

    model: Any = field(metadata={"group": True})
    dataset: Any = field(metadata={"group": True})
    candidates: Any = field(metadata={"group": True})
    method: Any = field(metadata={"group": True})
    metric: Metric
    trainer: Trainer
    logger: Logger
    seed: int = 0
    budget: float | None = None
    products: str | None = None
    query_sets: list[str] = field(default_factory=list)
    resume: bool = False
    cache_dir: str = "cache"


@dataclass
class EvaluateConfig:
    """Keys of `evaluate.py`; model, dataset and candidates hold instances of the classes of their YAML.

    `runs` are folders or globs of runs, sweeps or influence stores (empty = every finished attribute run of
    the configured model and dataset under outputs/ and multirun/), `scores` another program's file.
    """

    model: Any = field(metadata={"group": True})
    dataset: Any = field(metadata={"group": True})
    candidates: Any = field(metadata={"group": True})
    metric: Metric
    trainer: Trainer
    logger: Logger
    seed: int = 0
    runs: list[str] = field(default_factory=list)
    scores: str | None = None
    query_sets: list[str] = field(default_factory=list)
    cache_dir: str = "cache"


ROOTS: dict[str, type] = {"train": TrainConfig, "attribute": AttributeConfig, "evaluate": EvaluateConfig}
