"""What the iterative inverses (`cg`, `lissa`, `arnoldi`) share: I(z, q) = ∇m(q)ᵀ (G + λI)⁻¹ ∇ℓ(z).

G is the GGN of the training loss, summed over an example's tokens and averaged over the training examples or a stated
number of them, over all chosen components together: no block structure is assumed. Each query is multiplied by the
inverse once; training gradients are dotted with the result component by component. Sign: m is larger where the answer
is more likely, so positive = helps. Fills query, train and component.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields

import xarray as xr

from tdaexp.curvature.layers import layers_of
from tdaexp.gradients.against import Vectors, vector_products
from tdaexp.gradients.measurements import sources
from tdaexp.methods.base import Method
from tdaexp.methods.inverse_task import PROBES, Notes, Task, some_queries
from tdaexp.methods.parts import check_choices, names_of, with_notes
from tdaexp.methods.stage_costs import against_cost, solver_cost
from tdaexp.methods.study import Study
from tdaexp.methods.workload import Workload
from tdaexp.runtime.costs import StageCost
from tdaexp.runtime.errors import UserError

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
    "scale",
    "batch_size",
    "measurement",
    "reduction",
)


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
        check_choices(self.part, self.measurement, self.reduction)
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
        notes = [f"{key}={'all' if value is None else value}" for key, value in chosen.items()]
        return with_notes(self.name, [*notes, f"{len(self.components)} components" if self.components else ""])

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
            store=task.study.store("inverse", *task.curvature, *self.settings(), by=type(self)),
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
        names = names_of(work.every, self.part, self.components)
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
        own = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return [self.name, own, *sources(self.measurement)]
