"""The keys that every iterative inverse has (`cg`, `astra`, `lissa`, `arnoldi`)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

from tdaexp.objectives.measurements import sources
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import check_choices, with_notes

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
    "rate",
    "batch_size",
    "curvature_blocks",
    "measurement",
    "reduction",
)


@dataclass
class InverseSettings:
    """Keys: `damping` λ (null = `relative_damping` times the mean eigenvalue of G, estimated from its trace),
    `examples` that G is averaged over (null = all), `queries` of each query set that are answered (null = all; the
    others are left out of the answer), `part` of the model (`adapter`, `blocks` = attention and MLP, `attention`,
    `mlp`, `all`; null = the adapter where there is one, else `blocks`), `components` (names, in place of `part`),
    `measurement` of a query, `reduction` over tokens of loss and measurement (`mean`, `sum`), `seed`.

    Examples and queries are chosen by a hash of the seed and their id, so that their order plays no part.
    """

    damping: float | None = None
    relative_damping: float = 10.0
    examples: int | None = 128
    queries: int | None = 4
    part: str | None = None
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
    def linear(self) -> bool:
        """The query's gradient, times a matrix that no query decides."""
        return True

    @property
    def of_itself(self) -> Self:
        """The same, of the loss and for every example: a solution for each."""
        return replace(self, measurement="log_likelihood", queries=None)

    @property
    def fixed_damping(self) -> str:
        """A solution is for one."""
        return "each damping takes another solution for every query; compare runs with other values of method.damping"

    def identity(self, name: str) -> list[object]:
        """All that the solutions of the method of this name depend on beside the curvature and the queries."""
        return [name, vars(self), *sources(self.measurement)]

    def told(self, name: str) -> str:
        """The method's name, and what is not usual among the keys that change the answer."""
        usual = {one.name: one.default for one in fields(self)}
        chosen = {key: value for key in TOLD if (value := getattr(self, key, None)) != usual.get(key)}
        notes = [f"{key}={'all' if value is None else value}" for key, value in chosen.items()]
        return with_notes(name, [*notes, f"{len(self.components)} components" if self.components else ""])
