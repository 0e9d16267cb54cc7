"""Greedy component selection: a small, well-chosen part of the gradient in place of the whole.

Source: Hinterleitner et al. 2026 ("Select or Project?"), section 3.3 and Algorithm 2 (`greedy.py`). With K the chosen
components,

    s(z, q) = Σ_K g_c(q)·g_c(z) / √(Σ_K |g_c(q)|² Σ_K |g_c(z)|²)      of cosines, or Σ_K I_c(z, q)

Works on the component axis of any method that fills it (`on`), so nothing is run again for another budget or objective:
on cosines where the method keeps self-products, on plain sums where its answer is one (EK-FAC, multi-stage influence,
dot products). Beside the paper's objectives: `lds`, the components whose summed scores best foretell models that were
trained again (a bank of them, which `evaluate.py metric=lds` fills). Sign: as the method it selects from. Fills query,
train and component. Cost: the products, then seconds.

Scale: that of the method it selects from. Limits: a choice by accuracy needs queries whose sources are known, and
flatters itself on them; tables show accuracy on queries that were not used for choosing beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.methods.base import DEFAULT_BUDGET, Method, check_truth
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError, unknown
from tdaexp.selection import greedy
from tdaexp.selection.subsets import products_of
from tdaexp.selection.trials import LDS, varying

NEEDS_BANK = "method.objective=lds: is judged by models that were trained again"
INSTEAD = "choose method.objective=accuracy or fidelity"


@dataclass
class Select(Method):
    """Keys: `on` (the method whose components are chosen), `objective`, `budget` (fraction that the chosen
    components may have of the parameters which `on` looks at: EK-FAC covers the blocks only; null = 0.05), `selection`
    (a file of component names, one a line, instead of a search). Tables show the share of the whole model.

    Objectives: `accuracy` and `fidelity` are greedy (section 3.3 and Fig. 5); `single` ranks components by the accuracy
    of each alone; `lds` is greedy by the linear datamodeling score on `subsets` random subsets that lack the share
    `left_out`, and needs a score of every pair. Each query set gets its own selection. Where accuracy decides, queries
    count whose sources are known, and a query set that has none is refused.
    """

    on: Method
    objective: str = "accuracy"
    budget: float | None = None
    selection: str | None = None
    subsets: int = 100
    left_out: float = 0.05

    def __post_init__(self) -> None:
        """Refuse an unknown objective, a selection file that names nothing, and a budget beside such a file."""
        if self.selection is not None and self.budget is not None:
            raise UserError("budget: method.selection names the components itself; leave one of the two out")
        if self.objective not in (*greedy.SEARCHES, LDS):
            raise unknown("objective", self.objective, (*greedy.SEARCHES, LDS), "method.objective")
        if self.subsets < 3 or not 0 < self.left_out < 1:
            raise UserError("method.subsets, method.left_out: must be at least 3, and a share between 0 and 1")
        if self.selection is not None:
            self._wanted()

    @property
    def limit(self) -> float:
        """The budget, or its default."""
        return DEFAULT_BUDGET if self.budget is None else self.budget

    @property
    def label(self) -> str:
        """Name, what is selected on, objective and budget."""
        on = "" if self.on.label == "full" else f" on {self.on.label}"
        how = Path(self.selection).stem if self.selection else f"{self.objective}, {100 * self.limit:g} %"
        return f"select{on} ({how})"

    @property
    def reads_truth(self) -> bool:
        """Fidelity, and a list of one's own, need no source."""
        return self.selection is None and self.objective in greedy.NEED_TRUTH

    @property
    def both_stages(self) -> bool:
        """As the method that it selects from."""
        return self.on.both_stages

    @property
    def needs_both_stages(self) -> bool:
        """As the method that it selects from."""
        return self.on.needs_both_stages

    @property
    def wants_checkpoints(self) -> bool:
        """As the method that it selects from."""
        return self.on.wants_checkpoints

    @property
    def wants_state(self) -> bool:
        """As the method that it selects from."""
        return self.on.wants_state

    @property
    def sharded(self) -> bool:
        """As the method that it selects from."""
        return self.on.sharded

    @property
    def rehearsed(self) -> Method:
        """The method that it selects from: the search takes seconds."""
        return self.on.rehearsed

    def attribute(self, problem: Problem) -> xr.Dataset:
        """Products of `on`, and which components count for each query set.

        For `lds` also `member` [subset, row] and `retrained` [subset, query]: what the models trained again say.
        """
        if self.objective != LDS or self.selection is not None:
            return self.choose(self.on.attribute(problem))
        if problem.retrained is None:
            raise UserError(f"{NEEDS_BANK}, which only attribute.py finds for a model that it trained; {INSTEAD}")
        members, outputs = problem.retrained(problem, self.subsets, self.left_out)
        products = self.on.attribute(problem)
        found = products.assign(member=(("subset", "row"), members), retrained=(("subset", "query"), outputs))
        return self.choose(found.assign_coords(row=np.array(problem.train.ids, dtype=object)))

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Select on stored products, without a model."""
        if self.objective == LDS and self.selection is None:
            raise UserError(f"{NEEDS_BANK}, and stored products tell of none; {INSTEAD}")
        return self.choose(self.on.from_products(products))

    def choose(self, products: xr.Dataset) -> xr.Dataset:
        """Add `weight` [query_set_name, component] (1 = chosen) and `order` (rank in the search, -1 = never ranked)."""
        if "component" not in products["influence"].dims:
            raise UserError(
                f"method.on: '{self.on.name}' does not tell components apart; select works on methods that do, "
                "such as full, dot, ekfac or multistage"
            )
        if self.reads_truth:
            check_truth(self, products["query_set"].values, influence.truth_known(products))
        names = list(dict.fromkeys(products["query_set"].values))
        found = [self._search(products.isel(query=products["query_set"].values == name)) for name in names]
        dims = ("query_set_name", "component")
        return (
            products.assign(
                weight=(dims, np.stack([weight for weight, _ in found])),
                order=(dims, np.stack([rank for _, rank in found])),
            )
            .assign_coords(query_set_name=np.array(names, dtype=object))
            .assign_attrs(objective="file" if self.selection else self.objective, budget=self.limit)
        )

    def _search(self, products: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Weights [K] and ranks [K] for one query set."""
        sizes = products["size"].values
        if self.selection is not None:
            chosen = order = self._named(list(products["component"].values))
        else:
            judged = influence.with_truth(products) if self.reads_truth else products
            if self.objective == LDS:
                judged = varying(judged)
            found = greedy.select(products_of(judged), sizes, self.limit, self.objective)
            chosen, order = found.chosen, found.order
        weight, rank = np.zeros(len(sizes)), np.full(len(sizes), -1, dtype=np.int64)
        weight[chosen], rank[order] = 1.0, np.arange(len(order))
        return weight, rank

    def _named(self, components: list[str]) -> np.ndarray:
        """Positions of the components that the selection file names, in the file's order."""
        wanted = self._wanted()
        for name in wanted:
            if name not in components:
                raise unknown("component", name, components, str(self.selection))
        return np.array([components.index(name) for name in wanted])

    def _wanted(self) -> list[str]:
        """The names in the selection file, in its order, each once."""
        path = Path(str(self.selection))
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise UserError(f"method.selection={path}: cannot be read ({error.strerror})") from error
        wanted = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not wanted:
            raise UserError(f"method.selection={path}: names no component; write one name a line")
        return wanted
