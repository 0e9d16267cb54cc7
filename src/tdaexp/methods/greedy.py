"""Greedy forward selection of components on stored products (Select or Project, Algorithm 2, appendix B.3).

Nothing here sees a model: the input is, per component k, the dot product of query i's and candidate j's gradients
and both self-products, and the cosine of any subset of components follows from sums (A.2):

    cos_S(i, j) = Σ_{k∈S} dot[i,j,k] / (sqrt(Σ_{k∈S} query_sq[i,k]) sqrt(Σ_{k∈S} train_sq[i,j,k]) + ε)

The algorithm adds, one at a time, the component that makes the objective of the subset largest; of several that do,
the first in parameter order. One step evaluates all remaining components in one array operation, so an ordering of
K components over Q queries with C candidates costs O(K² Q C) and holds O(K Q C) numbers. Accumulators are float64.

Objectives (mean over queries, larger is better):

* `accuracy`: the share of queries whose source scores strictly higher than every other candidate (section 3.2).
* `fidelity`: how similar the subset's similarities are to those of the full gradient (section 5.3, figure 5), as the
  cosine between a query's score vector over its candidates and the full gradient's. The paper gives no formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdaexp.influence import EPSILON
from tdaexp.runtime.errors import UserError, unknown

OBJECTIVES = ("accuracy", "fidelity")
ROUNDING = 1e-9  # a prefix whose share equals the budget fits, whatever the budget's binary fraction is


@dataclass(frozen=True)
class Products:
    """The numbers that a selection works on, float64, component first and queries last (numpy is fast that way).

    `dot` [K, C, Q], `query_sq` [K, Q], `train_sq` [K, C, Q]; `source` and `rival` [C, Q] bool: the candidate exists
    and is, or is not, a source of the query. Where a query has fewer than C candidates both are False and the
    products are 0.
    """

    dot: np.ndarray
    query_sq: np.ndarray
    train_sq: np.ndarray
    source: np.ndarray
    rival: np.ndarray

    @classmethod
    def of(cls, dot: np.ndarray, query_sq: np.ndarray, train_sq: np.ndarray, truth: np.ndarray) -> Products:
        """Arrange `dot` [Q, C, K], `query_sq` [Q, K], `train_sq` [Q, C, K]; a candidate with a NaN is left out."""
        pairs, norms = (np.asarray(part, np.float64).transpose(2, 1, 0) for part in (dot, train_sq))
        valid = ~(np.isnan(pairs) | np.isnan(norms)).any(axis=0)
        pairs, norms = (np.ascontiguousarray(np.where(valid, part, 0.0)) for part in (pairs, norms))
        own = np.ascontiguousarray(np.asarray(query_sq, np.float64).T)
        known_truth = np.asarray(truth, bool).T
        return cls(pairs, own, norms, known_truth & valid, ~known_truth & valid)

    def queries(self, keep: np.ndarray) -> Products:
        """The products of some queries only (`keep`: positions or a mask over Q)."""
        return Products(
            *(part[..., keep] for part in (self.dot, self.query_sq, self.train_sq, self.source, self.rival))
        )

    def values(self, objective: str, order: np.ndarray) -> np.ndarray:
        """The objective's value per query [len(order), Q] for the subsets that grow along `order`."""
        judge = _judge(objective, self)
        totals = [np.zeros(part.shape[1:]) for part in (self.dot, self.query_sq, self.train_sq)]
        rows = np.empty((len(order), self.dot.shape[-1]))
        for step, k in enumerate(order):
            totals = [totals[0] + self.dot[k], totals[1] + self.query_sq[k], totals[2] + self.train_sq[k]]
            rows[step] = judge(_cosine(*totals))
        return rows

    def single(self, objective: str) -> np.ndarray:
        """The objective's value per query [K, Q] for each component alone."""
        return _judge(objective, self)(_cosine(self.dot, self.query_sq, self.train_sq))


def order_components(products: Products, objective: str, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 2 over the components `among` [E] (in parameter order): their order [E] and the path's values [E]."""
    judge = _judge(objective, products)
    dot, query_sq, train_sq = products.dot[among], products.query_sq[among], products.train_sq[among]
    remaining = np.array(among)
    order, path = np.empty(len(among), np.int64), np.empty(len(among))
    totals = tuple(np.zeros(part.shape[1:]) for part in (dot, query_sq, train_sq))
    for step in range(len(among)):
        grown = (totals[0] + dot, totals[1] + query_sq, totals[2] + train_sq)
        means = judge(_cosine(*grown)).mean(axis=-1)
        best = int(means.argmax())  # the first of equals: parameter order
        order[step], path[step] = remaining[best], means[best]
        totals = tuple(part[best].copy() for part in grown)
        dot, query_sq, train_sq = (np.delete(part, best, axis=0) for part in (dot, query_sq, train_sq))
        remaining = np.delete(remaining, best)
    return order, path


def greedy_order(
    dot: np.ndarray,
    query_sq: np.ndarray,
    train_sq: np.ndarray,
    truth: np.ndarray,
    objective: str = "accuracy",
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Order components by Algorithm 2.

    `dot` [Q, C, K], `query_sq` [Q, K], `train_sq` [Q, C, K], `truth` [Q, C] bool; pairs with a NaN are ignored.
    `among`: positions of the components that may be taken (all by default). Returns the order (positions) and the
    objective's value after each step.
    """
    products = Products.of(dot, query_sq, train_sq, truth)
    return order_components(products, objective, np.arange(dot.shape[2]) if among is None else np.sort(among))
