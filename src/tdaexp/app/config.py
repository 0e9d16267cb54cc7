"""The typed schema of the three commands: names and types of every key; the values are in `conf/`.

The groups model, dataset, candidates and method are open: their YAML names a dataclass (`_target_`), and its
fields are the schema. Everything else is declared here. Nothing in this file knows Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdaexp.app import foreign
from tdaexp.app.found import Found
from tdaexp.data.best import EXACT, Best
from tdaexp.index.shares import share_of
from tdaexp.metrics.settings import MetricSettings
from tdaexp.models.task import TaskModel
from tdaexp.report.dashboards.library import check_installed
from tdaexp.report.dropping import COLUMN
from tdaexp.runtime.device import ACCELERATORS, PRECISIONS
from tdaexp.runtime.errors import UserError, check_distinct, unknown
from tdaexp.runtime.names import check_name
from tdaexp.training.settings import FitSettings

REPLACED_BY_PRODUCTS = ("model", "dataset", "candidates", "decoding")
"""Groups that a run on stored products does not read."""

MOST_THREADS = 1024


PROTOCOLS = {
    "model": ("start_fingerprint",),
    "dataset": ("check_source", "load"),
    "candidates": ("select", "size"),
    "decoding": ("deciding",),
    "method": ("attribute", "from_products"),
    "analysis": ("run", "needs_runs"),
}
"""What the class of each open group must have; a class without it belongs to another group."""


def _choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown("value", value, choices, key, hint=foreign.value_hint(key, value))


def _open(name: str) -> dict[str, Any]:
    return {"group": True, "offers": PROTOCOLS[name]}


def several(key: str, value: Any) -> list[str]:
    """The texts of a key that takes one or a list of them. Errors (UserError): anything else, one that stands twice."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise UserError(f"{key}={value}: must be a text, or a list of texts as in {key}=[a,b]")
    check_distinct(found, lambda: key)
    return found


@dataclass
class Trainer:
    """Where and how passes through the model are run.

    `accelerator` auto | cpu | cuda; `precision` float32 | bfloat16 | float64 | auto, as the model is stored;
    `tokens_per_batch` bounds a batch's padded size (tokens); `cache_gb` memory for captured factors (GB); CPU `threads`
    (0 = leave them);
    `fit` how a model is trained, where it is, and `finetune` how it is trained on, where the data has a second stage;
    `strategy` single | ddp | fsdp, one process or `devices` of them on each of `nodes` machines (0 = every GPU), each
    with the whole model (ddp) or a share of it (fsdp);
    `rate_tflops` (10^12 FLOP/s) and `device_gb` (GB) of the device, for plans (null = the device's usual ones).
    """

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    precision: str = "float32"
    tokens_per_batch: int = 4096
    cache_gb: float = 2.0
    threads: int = 0
    rate_tflops: float | None = None
    device_gb: float | None = None
    fit: FitSettings = field(default_factory=FitSettings)
    finetune: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes that cannot be."""
        _choice("trainer.strategy", self.strategy, ("single", "ddp", "fsdp"))
        _choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        _choice("trainer.precision", self.precision, PRECISIONS)
        for name, what in (("devices", "processes"), ("nodes", "machines")):
            if self.strategy == "single" and getattr(self, name) > 1:
                raise UserError(
                    f"trainer.{name}={getattr(self, name)}: several {what} need trainer=ddp or trainer=fsdp"
                )
        if self.strategy == "single" and self.devices == 0:
            raise UserError("trainer.devices=0: every GPU, a process each, needs trainer=ddp or trainer=fsdp")
        for name in ("rate_tflops", "device_gb"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"trainer.{name}={getattr(self, name)}: must be above 0, or null")
        for name, least in (("devices", 0), ("nodes", 1), ("tokens_per_batch", 1), ("cache_gb", 0), ("threads", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"trainer.{name}={getattr(self, name)}: must be at least {least}")
        if self.threads > MOST_THREADS:
            raise UserError(f"trainer.threads={self.threads}: must be at most {MOST_THREADS}")


def _settle_precision(config: Any, download: bool = True) -> None:
    """Put the type in which the model is stored in the place of `trainer.precision=auto`."""
    if config.trainer.precision == "auto":
        stored = getattr(config.model, "stored_precision", None)
        config.trainer.precision = "float32" if stored is None else stored(download)


@dataclass
class Logger:
    """Where a run is mirrored: `kind` none | csv | wandb; the other keys are wandb's own.

    `mode` offline | online | disabled. Jobs of a sweep share the sweep's name as `group` unless one is given. `texts`:
    are training texts and questions mirrored too (null = unless the mode is online)?
    """

    kind: str = "wandb"
    mode: str = "offline"
    project: str = "tdaexp"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    texts: bool | None = None

    def __post_init__(self) -> None:
        """Refuse unknown kinds and modes."""
        _choice("logger.kind", self.kind, ("none", "csv", "wandb"))
        _choice("logger.mode", self.mode, ("offline", "online", "disabled"))
        for key in ("project", "entity", "group"):
            if getattr(self, key) is not None:
                check_name(f"logger.{key}", getattr(self, key))


@dataclass
class TrainConfig:
    """Keys of `train.py`; model and dataset hold instances of the classes that their YAML names."""

    model: Any = field(metadata=_open("model"))
    dataset: Any = field(metadata=_open("dataset"))
    trainer: Trainer
    logger: Logger
    seed: int = 0
    resume: bool = False
    cache_dir: str = "cache"

    def __post_init__(self) -> None:
        """Refuse data that is not named, and a trainer that does not train."""
        if self.trainer.strategy == "fsdp":
            raise UserError("trainer=fsdp: shares out models that are explained, it trains none; take trainer=ddp")
        self.dataset.check_source()
        _settle_precision(self)


@dataclass
class AttributeConfig:
    """Keys of `attribute.py`; model, dataset, candidates and method hold objects of their YAML's classes.

    `budget` is the fraction of parameters (select) or dimensions (project) that a surrogate may use,
    `products` a file of stored component products, instead of model, dataset, candidates and decoding, and `query_set`
    what its queries are (null = as the file says, else `queries`); `stage` the training stage (`finetuned` or
    `pretrained`) whose model a single-stage method explains where the data has two; `self_influence` asks what each
    training example does for itself, too (and that alone with `dataset.query_sets=[]`); `trust`, whether checks of the
    answer are made that take passes through the model (null = at most 2 % of the run's, or a second or two); `plan`
    prints what the run would cost and ends; `shard` (such as 3/64: the third of 64 tasks) builds that share of the
    method's index of the training examples, and ends.
    """

    model: Any = field(metadata=_open("model"))
    dataset: Any = field(metadata=_open("dataset"))
    candidates: Any = field(metadata=_open("candidates"))
    decoding: Any = field(metadata=_open("decoding"))
    method: Any = field(metadata=_open("method"))
    metric: MetricSettings
    trainer: Trainer
    logger: Logger
    seed: int = 0
    budget: float | None = None
    stage: str = "finetuned"
    products: str | None = None
    query_set: str | None = None
    self_influence: bool = False
    trust: bool | None = None
    shard: str | None = None
    plan: bool = False
    resume: bool = False
    cache_dir: str = "cache"

    def __post_init__(self) -> None:
        """Refuse a budget that is no fraction, an unknown stage, and a run without queries."""
        _choice("stage", self.stage, ("pretrained", "finetuned"))
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(f"budget={self.budget}: must be above 0 and at most 1 (a fraction, not per cent)")
        if self.query_set is not None and (self.products is None or not self.query_set.strip()):
            raise UserError(
                f"query_set={self.query_set}: names the queries of products=FILE; of a data set they are chosen by "
                "dataset.query_sets"
            )
        if self.trainer.strategy == "fsdp" and self.products is None:
            self._check_sharded()
        if self.products is None and not self.plan:
            self.dataset.check_source()
        self._check_found()
        if self.self_influence:
            self._check_itself()
        elif self.products is None and not self.dataset.query_sets and self.shard is None:
            raise UserError("dataset.query_sets is empty; name at least one, e.g. dataset.query_sets=[paraphrased]")
        _settle_precision(self, download=not self.plan)

    def _check_found(self) -> None:
        """Refuse what asks for an index of a method that keeps none, and a share of an index that nobody will read."""
        found = isinstance(self.candidates, Best)
        if found and self.products is None:
            self.method.check_indexed("candidates=best")
            if self.candidates.search != EXACT and self.method.exact_only:
                raise UserError(
                    f"candidates.search={self.candidates.search}: of method={self.method.name} "
                    f"{self.method.exact_only}, so nothing of faiss would serve the next ones; take search=exact"
                )
            if getattr(self.dataset, "combine", None) is not None:
                raise UserError("dataset.combine: questions that are one need the same candidates; take candidates=all")
        if self.shard is None:
            return
        share_of(self.shard)
        if not found or self.products is not None:
            raise UserError(f"shard={self.shard}: builds a share of the index that candidates=best looks in; add that")
        if self.self_influence:
            raise UserError(f"shard={self.shard}: builds a share of an index alone; leave self_influence out")

    def _check_itself(self) -> None:
        """Refuse self-influence without a model, and of methods that have none."""
        if self.products is not None:
            raise UserError("self_influence=true: needs a model and its training examples; leave products out")
        self.method.check_itself()

    def _check_sharded(self) -> None:
        """Refuse what needs the whole model in one process."""
        if not self.method.sharded or isinstance(self.model, TaskModel):
            what = "a model of a task" if self.method.sharded else f"method={self.method.name}"
            raise UserError(
                f"trainer=fsdp: {what} needs the whole model in each process; on language models select, full, dot, "
                "project, ekfac, bm25 and random do without; else take trainer=ddp"
            )
        if getattr(self.model, "finetuned", None) is not None:
            raise UserError(
                "trainer=fsdp: shares out one model, and model.finetuned names a second; explain that one alone "
                "(model.pretrained=FOLDER model.finetuned=null), or take trainer=ddp"
            )


@dataclass
class EvaluateConfig:
    """Keys of `evaluate.py`; model, dataset, candidates and decoding hold objects of their YAML's classes.

    `runs` are folders or globs of runs, sweeps or influence stores (empty = every finished attribute run of
    the configured model and dataset under outputs/ and multirun/); `over` one or several keys, such as `seed`: runs
    that differ in these alone are averaged. `scores` are one or several files of another program, on the pairs of the
    first of the named runs, else on those that `dataset` and `candidates` (or `products`, with `query_set`) make, as
    for `attribute.py`. `analysis` is a study of the runs instead of the comparison (`tdaexp.papers`); `cache` lists
    what cache_dir holds (`list`), deletes what no run of this version can reach (`prune`) or names what is damaged of
    all that has checksums (`verify`), and does nothing else; `drop` writes the training file of the one run in `runs`
    without so many rows (below 1: a share of them), and does nothing else: the most `harmful` or `helpful` ones, or
    those with the largest `self`-influence (`drop_by`).
    `dashboard` makes a view in wandb of the comparison: a `workspace` of the runs, or a `report` of the methods; of a
    `leaderboard`, a CSV file (columns: `report.dashboards.leaderboard`), the report alone, and nothing is compared.

    `serve` shows a page on this machine's `port` (0: any that is free) that asks the index of the one run in
    `runs`, and does nothing else.

    `found` are the stores and what is missing; whoever runs the stage fills it in.
    """

    model: Any = field(metadata=_open("model"))
    dataset: Any = field(metadata=_open("dataset"))
    candidates: Any = field(metadata=_open("candidates"))
    decoding: Any = field(metadata=_open("decoding"))
    metric: MetricSettings
    trainer: Trainer
    logger: Logger
    seed: int = 0
    analysis: Any = field(default=None, metadata=_open("analysis"))
    runs: list[str] = field(default_factory=list)
    over: Any = None
    scores: Any = None
    products: str | None = None
    query_set: str | None = None
    drop: float | None = None
    drop_by: str = "harmful"
    dashboard: str | None = None
    leaderboard: str | None = None
    serve: bool = False
    port: int = 8765
    cache: str | None = None
    cache_dir: str = "cache"
    found: Found = field(default_factory=Found, init=False)

    def __post_init__(self) -> None:
        """Refuse an unknown word, a number of rows that is none, an analysis of classes where the data has none, and
        a dashboard of what is not in wandb.
        """
        self.over, self.scores = several("over", self.over), several("scores", self.scores)
        if self.cache is not None:
            _choice("cache", self.cache, ("list", "prune", "verify"))
        self._check_dashboard()
        if self.serve:
            self._check_serve()
        _settle_precision(self, download=False)
        _choice("drop_by", self.drop_by, tuple(COLUMN))
        if self.drop is not None and not (0 < self.drop < 1 or (self.drop >= 1 and self.drop == int(self.drop))):
            raise UserError(
                f"drop={self.drop:g}: must be a share of the rows between 0 and 1, or a whole number of rows"
            )
        self._check_analysis()
        if self.products is not None and (not self.scores or self.runs):
            raise UserError(
                f"products={self.products}: gives the pairs for scores=FILE where no runs are named; leave it out"
            )
        if self.query_set is not None and (self.products is None or not self.query_set.strip()):
            raise UserError(f"query_set={self.query_set}: names the queries of products=FILE; leave it out")

    def _check_analysis(self) -> None:
        """Refuse an analysis of classes where the data has none, and keys that no analysis reads."""
        if self.analysis is None:
            return
        name = type(self.analysis).__module__.rpartition(".")[2]
        if self.over or self.scores:
            raise UserError(
                f"analysis={name}: reads the runs one by one, and no other scores; leave out over= and scores="
            )
        if self.analysis.needs_task and not isinstance(self.model, TaskModel):
            raise UserError(
                f"analysis={name}: is about a classification task, and the configured model and dataset are of texts; "
                "name those of the runs, e.g. model=mnist_cnn dataset=digits or model=grokking dataset=modular_addition"
            )

    def _check_serve(self) -> None:
        """Refuse what compares or does something else beside; nothing of what is typed goes to a mirror."""
        others = [
            key for key in ("analysis", "drop", "cache", "dashboard", "leaderboard") if getattr(self, key) is not None
        ]
        others += [key for key in ("over", "scores") if getattr(self, key)]
        if others:
            raise UserError(f"serve=true: serves a page and does nothing else; leave {others[0]} out")
        self.logger = Logger(kind="none")

    def _check_dashboard(self) -> None:
        """Refuse a dashboard without a mirror in wandb or beside what compares nothing, and a leaderboard without."""
        if self.leaderboard is not None and self.dashboard != "report":
            raise UserError(f"leaderboard={self.leaderboard}: is shown in a report; add dashboard=report")
        if self.dashboard is None:
            return
        _choice("dashboard", self.dashboard, ("workspace", "report"))
        if self.logger.kind != "wandb" or self.logger.mode == "disabled":
            raise UserError(
                f"dashboard={self.dashboard}: shows what is in wandb; take logger=wandb logger.mode=offline, or online"
            )
        others = [key for key in ("analysis", "drop", "cache") if getattr(self, key) is not None]
        if others:
            raise UserError(f"dashboard={self.dashboard}: is of a comparison of runs; leave {others[0]} out")
        check_installed(f"dashboard={self.dashboard}")


ROOTS: dict[str, type] = {"train": TrainConfig, "attribute": AttributeConfig, "evaluate": EvaluateConfig}
