"""What a method is: a dataclass of settings and one function from a problem to a labelled influence data set."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import xarray as xr

from tdaexp import influence
from tdaexp.index.index import Index
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError
from tdaexp.runtime.rows import Rows, rows_of
from tdaexp.trust.sketch import Sketched

INDEXED = "project, logra or trackstar"
"""The methods that keep an index, for people."""
DEFAULT_BUDGET = 0.05
"""Budget of a run that sets none: a fraction of the parameters, or of the dimensions."""


class Method(ABC):
    """Base of every method. A subclass is a `@dataclass`: its fields are the keys of its YAML in `conf/method/`.

    A method that depends on the run's budget declares a field `budget: float`.
    """

    @property
    def name(self) -> str:
        """The method's name in tables and stores: that of its module, or of its class where the module is not ours."""
        package, _, module = type(self).__module__.rpartition(".")
        return module if package else type(self).__name__.lower()

    @property
    def label(self) -> str:
        """What tells this run of the method from others in a table."""
        return self.told(self.name)

    def told(self, name: str) -> str:
        """The `name` with what is not usual among the keys; here the name alone."""
        return name

    @property
    def both_stages(self) -> bool:
        """Whether the method looks at both training stages of a two-stage problem; others see the run's `stage`."""
        return False

    @property
    def needs_both_stages(self) -> bool:
        """Whether the method has no answer about a problem of one stage."""
        return False

    @property
    def wants_checkpoints(self) -> bool:
        """Whether a model that is trained for this method must keep the checkpoints on its way."""
        return False

    @property
    def wants_state(self) -> bool:
        """Whether these checkpoints must have the optimiser's state (`Moment.state`), where it is AdamW."""
        return False

    @property
    def decomposes(self) -> bool:
        """Whether the method decomposes a recorded training, or a list of checkpoints, and scores no pairs."""
        return False

    @property
    def reads_model(self) -> bool:
        """Whether the method runs the model at all."""
        return True

    @property
    def reads_truth(self) -> bool:
        """Whether the answer rests on known sources of queries: such a method refuses query sets that have none."""
        return False

    @property
    def linear(self) -> bool:
        """Whether the answer about the mean of several queries' measurements is the mean of the answers about them."""
        return False

    @property
    def sharded(self) -> bool:
        """Whether the method works on a model of which each process holds a share (`models.sharded`)."""
        return not self.reads_model

    @property
    def rehearsed(self) -> Method:
        """The method that does the work, as a plan sees it."""
        return self

    @property
    def indexed(self) -> bool:
        """Whether the method keeps an index of all training examples, without a query in it (`index`)."""
        return False

    @property
    def of_itself(self) -> Method | None:
        """The method whose score of an example for itself is the example's self-influence: it measures the loss, for
        every query. None where that says nothing (a cosine, words).
        """
        return None

    @property
    def fixed_damping(self) -> str | None:
        """Why `redamped` cannot score pairs at another damping, for people; None where it can."""
        return "the method has no damping"

    def redamped(self, problem: Problem, rows: list[int], pairs: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """Scores [F, n, C] of the queries `rows` and their `pairs` [n, C], numbers of training examples (-1: none),
        with the damping multiplied by each factor: for a check of the answer (`trust.damping`).
        """
        raise NotImplementedError(self.fixed_damping)

    def sketched(self, problem: Problem) -> Sketched | None:
        """The random projections that the answer was made of (`trust.sketch`); None where gradients are whole."""
        return None

    @abstractmethod
    def attribute(self, problem: Problem) -> xr.Dataset:
        """Score the problem's pairs; positive means that training on the example made the query more likely."""

    def index(self, problem: Problem) -> Index:
        """The index of the training examples, of which blocks may be missing. Of methods that are `indexed`."""
        raise NotImplementedError(f"{self.name} keeps no index")

    def found(self, problem: Problem) -> Problem:
        """The problem about the pairs that are `wanted`, found in the index; what is missing of it is built first.

        Of methods that are `indexed`; `attribute` is then asked about these pairs.
        """
        raise NotImplementedError(f"{self.name} keeps no index")

    def check_indexed(self, key: str) -> None:
        """Refuse (UserError) a method without an index, where `key` asks for one."""
        if not self.indexed:
            raise UserError(
                f"{key}: method={self.name} keeps no index of the training examples; take method={INDEXED}, or name "
                "the pairs (candidates=all, bm25 or sample)"
            )

    @property
    def exact_only(self) -> str | None:
        """Why faiss cannot keep what queries meet in place of the index's rows; None: it can."""
        return None

    def self_influence(self, problem: Problem) -> xr.Dataset:
        """What each training example does for itself [train, component] (`influence.itself`), positive = supports it.

        The pairs are (i, i): a pass for each example as a query and one as a candidate, and no table of all pairs.
        Errors (UserError): the method has no self-influence.
        """
        return influence.itself(self.check_itself().attribute(problem.with_itself()))

    def check_itself(self) -> Method:
        """`of_itself`. Errors (UserError): there is none."""
        if self.of_itself is None:
            raise UserError(
                f"self_influence: of method={self.name} an example's score for itself says nothing; take ekfac, dot, "
                "full, project, trak, tracin, logra, datainf, cg, astra, lissa or arnoldi"
            )
        return self.of_itself

    def relative_to_self(self, problem: Problem, values: np.ndarray | Rows) -> Rows:
        """Influence [Q, C, K] over the square root of the training example's self-influence, that of all components.

        ℓ-RelatIF of Barshan et al. 2020: examples of large loss do not come first for every query. Stays additive over
        components. An example without any gradient has influence 0.
        """
        scale = self.over_itself(problem)
        return rows_of(values).map(lambda found, rows: found * scale()[problem.pairs[rows]][..., None], np.float64)

    def over_itself(self, problem: Problem) -> Callable[[], np.ndarray]:
        """What reads 1 over the square root of each training example's self-influence [N]; 0 where that is none."""
        own = self.self_influence(problem)["self_influence"]

        @functools.cache
        def scale() -> np.ndarray:
            total = own.values.astype(np.float64).sum(1)
            found: np.ndarray = np.divide(1.0, np.sqrt(total), out=np.zeros(len(total)), where=total > 0)
            return found

        return scale

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """Answer from stored component products alone, without a model; most methods cannot."""
        raise UserError(
            f"products: method '{self.name}' needs a model; on stored products use select, full, dot, bm25 or random"
        )


class InMetric(Method):
    """Base of those that may take products in AdamW's metric: a field `precondition`, `none` or `adamw`."""

    precondition: str

    @property
    def sharded(self) -> bool:
        """Yes, where it sees activations and their gradients alone."""
        return self.precondition == "none"

    @property
    def wants_checkpoints(self) -> bool:
        """With AdamW's metric."""
        return self.precondition == "adamw"

    @property
    def wants_state(self) -> bool:
        """With AdamW's metric."""
        return self.precondition == "adamw"


def check_truth(method: Method, query_sets: Iterable[str], known: Iterable[bool]) -> None:
    """Refuse (UserError) a query set without a known source where the method rests on them.

    `query_sets` names the set of each query, `known` says of each whether its sources are known.
    """
    of_set: dict[str, bool] = {}
    for name, one in zip(query_sets, known, strict=True):
        of_set[str(name)] = of_set.get(str(name), False) or bool(one)
    for name, any_known in of_set.items():
        if method.reads_truth and not any_known:
            raise UserError(
                f"method={method.name}: chooses by accuracy, but of no query in the set '{name}' the source is known; "
                "choose by similarity to the full gradient (method=select_fidelity), or say where queries come from "
                "(dataset.truth_column=NAME; the array 'target' of stored products)"
            )


def check_combines(method: Method) -> None:
    """Refuse (UserError) a method whose answer about a mean of measurements is not the mean of its answers."""
    if not method.linear:
        raise UserError(
            f"dataset.combine=mean: method={method.name} is not linear in the query (a cosine scales each question by "
            "its own norm), so the mean of its scores is no score of the mean; take dot, ekfac, logra, datainf, cg, "
            "astra, lissa, arnoldi, trak or tracin"
        )
    if getattr(method, "queries", None) is not None:
        raise UserError("dataset.combine=mean: is about all questions; set method.queries=null")
    if getattr(method, "per_token", 0):
        raise UserError("dataset.combine=mean: several questions have no tokens in common; set method.per_token=0")
