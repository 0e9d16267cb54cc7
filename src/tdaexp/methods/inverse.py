"""What the iterative inverses (`cg`, `lissa`, `arnoldi`) share: I(z, q) = ∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z).

G is the GGN of the training loss, summed over an example's tokens and averaged over the training examples or a stated
number of them, over all chosen components together: no block structure is assumed. Each query is multiplied by the
inverse once; training gradients are dotted with the result component by component. Sign: m is larger where the answer
is more likely, so positive = helps. Fills query, train and component.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.gradients.against import Vectors, gradient_vectors, vector_products
from tdaexp.gradients.capture import REDUCTIONS
from tdaexp.gradients.factors import accumulation_dtype
from tdaexp.gradients.measurements import as_loss, named
from tdaexp.methods.base import Method
from tdaexp.methods.ekfac import PARTS
from tdaexp.methods.stage_costs import against_cost, solver_cost
from tdaexp.methods.study import Study
from tdaexp.methods.workload import Workload
from tdaexp.models.components import ComponentMap
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.runtime.fingerprint import fingerprint

Notes = dict[str, tuple[str, np.ndarray]]
"""Arrays [Q] to add to the answer: name to (dimension, values)."""

log = logging.getLogger(__name__)
TOLD = (
    "part",
    "damping",
    "relative_damping",
    "examples",
    "iterations",
    "tolerance",
    "depth",
    "repeats",
    "steps",
    "rank",
)
PROBES = 8  # random vectors that estimate the trace
PRODUCT_TOKENS = 512  # of a batch in a GGN product, at most: the vectors multiply it


@dataclass
class Inverse(Method):
    """Keys: `damping` λ (null = `relative_damping` times the mean eigenvalue of G, estimated from its trace),
    `examples` that G is averaged over (null = all), `queries` of each query set that are answered (null = all; the
    others are left out of the answer), `part` of the model (`blocks` = attention and MLP, `attention`, `mlp`),
    `components` (names, in place of `part`), `measurement` of a query, `reduction` over tokens of loss and measurement
    (`mean`, `sum`), `seed`.

    Examples and queries are chosen by a hash of the seed and their id, so that their order plays no part.
    """

    damping: float | None = None
    relative_damping: float = 10.0
    examples: int | None = 128
    queries: int | None = 4
    part: str = "blocks"
    components: list[str] | None = None
    measurement: str = "log_likelihood"
    reduction: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown choices and impossible numbers."""
        named(self.measurement)
        for key, choices in (("part", PARTS), ("reduction", REDUCTIONS)):
            if getattr(self, key) not in choices:
                raise unknown(key, getattr(self, key), choices, f"method.{key}")
        for key in ("examples", "queries"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"method.{key}={getattr(self, key)}: must be at least 1, or null for all")
        for key in ("damping", "relative_damping"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UserError(f"method.{key}={getattr(self, key)}: must be above 0; try method.relative_damping=10")

    @property
    def label(self) -> str:
        """Name, and what is not usual among the keys that change the answer."""
        usual = {one.name: one.default for one in fields(self)}
        chosen = {key: value for key in TOLD if (value := getattr(self, key, None)) != usual.get(key)}
        notes = [f"{key}={value}" for key, value in chosen.items()]
        if self.components:
            notes.append(f"{len(self.components)} components")
        return self.name + (f" ({', '.join(notes)})" if notes else "")

    @abstractmethod
    def solve(self, task: Task) -> tuple[Vectors, Notes]:
        """Queries' gradients times the inverse, and what is to be told of each query in the answer."""

    def attribute(self, study: Study) -> xr.Dataset:
        """Multiply the queries by the inverse, then dot training gradients with them."""
        task = Task(self, some_queries(study, self.queries, self.seed))
        vectors, notes = self.solve(task)
        compute = study.compute
        values = vector_products(
            study.loaded.model,
            task.components,
            study.train,
            task.study.pairs,
            vectors,
            store=task.study.store("inverse", *task.curvature, *self.settings()),
            reduction=self.reduction,
            tokens_per_batch=compute.tokens_per_batch,
            cache_gb=compute.cache_gb,
        )
        dataset = task.study.label(values, task.components).assign(notes)
        return dataset.assign_attrs(damping=task.damping, curvature_examples=len(task.ggn.examples))

    def products(self, queries: int) -> float:
        """How many products with the curvature solving for so many queries takes, at most."""
        return float(queries)

    def plan(self, work: Workload) -> list[StageCost]:  # type: ignore[override]
        """The solver, training gradients against its vectors, and the answer."""
        names = self.components or [name for name in work.every.names if PARTS[self.part] in name]
        components = layers_of(work.components(names)).components
        answered = work.answered(self.queries)
        examples = work.some(work.train, range(min(self.examples or len(work.train), len(work.train))))
        products = self.products(len(answered.queries)) + PROBES * (self.damping is None)
        solver = solver_cost(
            answered,
            int(components.sizes.sum()),
            examples,
            products,
            len(answered.queries),
            getattr(self, "at_once", 1),
        )
        return [solver, against_cost(answered, components), answered.answer(len(components), self_products=False)]

    def settings(self) -> list[object]:
        """Everything that decides the answer, for the names of stores."""
        return [self.name, {key: value for key, value in vars(self).items() if not key.startswith("_")}]


class Task:
    """One run of such a method: its study, components, curvature and damping, each made when it is first needed."""

    def __init__(self, method: Inverse, study: Study) -> None:
        self.method, self.study = method, study
        every = study.components()
        names = method.components or [name for name in every.names if PARTS[method.part] in name]
        self.layers = layers_of(every.select(names))
        self.components: ComponentMap = self.layers.components
        pad = study.loaded.tokenizer.pad_token_id
        chosen = by_hash(study.curvature_examples.ids, method.examples, method.seed)
        self.ggn = TrainingGGN(
            study.loaded.model,
            self.components,
            Examples([study.curvature_examples[index] for index in chosen]),
            tokens_per_batch=min(PRODUCT_TOKENS, study.compute.tokens_per_batch),
            pad_id=0 if pad is None else int(pad),
        )
        self.curvature = [self.components.names, self.ggn.examples.fingerprint()]

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Trace of G over its size, from random vectors of signs (Hutchinson): exact on average."""
        store = self.study.training_store("trace", *self.curvature, self.method.seed)
        kept = BlockStore(store, {"mean": ((1,), "float64")}, [slice(0, 1)])
        with kept.pending() as missing:
            if missing:
                probes = torch.stack([self.random(f"probe {k}").sign() for k in range(PROBES)])
                total = (probes.double() * self.ggn.multiply(probes).double()).sum()
                kept.write(0, {"mean": np.array([float(total) / (PROBES * self.ggn.size)])})
        return float(kept.read()["mean"][0])

    @cached_property
    def damping(self) -> float:
        """λ."""
        if self.method.damping is not None:
            return self.method.damping
        value = self.method.relative_damping * self.mean_eigenvalue
        if not value > 0:
            raise UserError("the curvature is zero, so that relative damping is too; set method.damping=1e-4")
        log.info("damping: λ = %.4g (%g of the mean eigenvalue)", value, self.method.relative_damping)
        return value

    @property
    def kind(self) -> torch.dtype:
        """The type of vectors."""
        return accumulation_dtype(self.study.loaded.model.dtype)

    def random(self, purpose: str) -> Tensor:
        """A normal vector [size], the same on every device."""
        generator = torch.Generator().manual_seed(int(fingerprint(self.method.seed, purpose), 16) >> 1)
        model = self.study.loaded.model
        return torch.randn(self.ggn.size, generator=generator, dtype=self.kind).to(model.device)

    def gradients(self, queries: Iterable[int]) -> Tensor:
        """Gradients of minus the measurement [n, size] of some queries."""
        return gradient_vectors(
            self.study.loaded.model,
            self.components,
            Examples([self.study.queries[query] for query in queries]),
            loss=as_loss(named(self.method.measurement)),
            reduction=self.method.reduction,
            tokens_per_batch=self.study.compute.tokens_per_batch,
        )


def solve_in_blocks(
    task: Task, at_once: int, notes: dict[str, str], solver: Callable[[Tensor], dict[str, Tensor]]
) -> tuple[Vectors, Notes]:
    """Solve for `at_once` queries at a time and keep the solutions, so that a killed run goes on at the next block.

    `solver` takes gradients [n, size] and returns `vectors` [n, size] and what `notes` names (with its dtype), [n].
    """
    count = len(task.study.queries)
    slices = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    kind = str(task.kind).removeprefix("torch.")
    arrays: dict[str, tuple[tuple[int, ...], str]] = {name: ((count,), own) for name, own in notes.items()}
    arrays["vectors"] = (count, task.ggn.size), kind
    blocks = BlockStore(task.study.store("solutions", *task.curvature, *task.method.settings()), arrays, slices)
    with blocks.pending() as missing:
        for number in blocks.each(missing, "solutions"):
            log.info("queries %d to %d of %d", slices[number].start + 1, slices[number].stop, count)
            found = solver(task.gradients(range(count)[slices[number]]))
            blocks.write(number, {name: value.cpu().numpy() for name, value in found.items()})

    def vectors(queries: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([blocks.group["vectors"][query] for query in queries]))

    return vectors, {name: ("query", blocks.group[name][:]) for name in notes}


def by_hash(ids: list[str], count: int | None, seed: int) -> list[int]:
    """Places of `count` of the ids (null = all), chosen and ordered by a hash of seed and id."""
    order = sorted(range(len(ids)), key=lambda place: fingerprint(seed, ids[place]))
    return order[:count]


def some_queries(study: Study, count: int | None, seed: int) -> Study:
    """The study with `count` queries of each query set (null = all), in the study's order."""
    if count is None:
        return study
    kept: list[int] = []
    for name in dict.fromkeys(study.query_set):
        places = [place for place, own in enumerate(study.query_set) if own == name]
        kept += [places[k] for k in by_hash([study.queries[place].id for place in places], count, seed)]
    if len(kept) == len(study.queries):
        return study
    rows = sorted(kept)
    log.info("%d of %d queries are answered (method.queries=%d of each set)", len(rows), len(study.queries), count)
    return replace(
        study,
        queries=Examples([study.queries[row] for row in rows]),
        query_set=[study.query_set[row] for row in rows],
        candidates=Candidates(study.candidates.indices[rows], study.candidates.bm25[rows]),
        truth=study.truth[rows],
    )
