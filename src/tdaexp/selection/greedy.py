"""Greedy forward selection of components on stored products (Select or Project, Algorithm 2, appendix B.3).

The algorithm adds, one at a time, the component that makes the mean objective of the subset largest; of
several that do, the first in parameter order. One step evaluates all remaining components in one array
operation for each block of queries, so an ordering of K components over Q queries with C candidates costs O(K² Q C) and
holds O(K Q C) numbers, once. Accumulators are float64.

A budget is a fraction of all parameters. A component that alone is larger than the budget can be in no
answer, so it is not ranked; of the others, the answer is the largest prefix of the ordered list that fits. A
budget of 1 therefore gives the full gradient, and a budget that admits the smallest component never gives an
empty answer.

Selecting and scoring on the same queries flatters the result: `cross_validated` selects on all folds but one
and scores on the one left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdaexp.runtime.errors import UserError
from tdaexp.selection.subsets import OBJECTIVES, Products, judge

ROUNDING = 1e-9  # a prefix whose share equals the budget fits, whatever the budget's binary fraction is


SEARCHES = (*OBJECTIVES, "single")
NEED_TRUTH = ("accuracy", "single")


@dataclass(frozen=True)
class Selection:
    """Components in greedy order: `order` [E] positions, `path` [E] the mean objective after each step, and
    `chosen`, the prefix of `order` that fits the budget.
    """

    order: np.ndarray
    path: np.ndarray
    chosen: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """A k-fold selection over Q queries.

    `fold` [Q]: the fold that holds the query out; `orders` [F, E]: the order found without fold f; `paths`
    [F, E]: its mean objective on the queries it was found on; `values` [E, Q]: the objective of each query
    after each step of the order found without it.
    """

    fold: np.ndarray
    orders: np.ndarray
    paths: np.ndarray
    values: np.ndarray

    def at(self, steps: np.ndarray) -> np.ndarray:
        """Return each query's value [Q] when fold f stops after its first `steps[f]` components."""
        return np.asarray(self.values[steps[self.fold] - 1, np.arange(len(self.fold))])

    def at_budget(self, sizes: np.ndarray, budget: float) -> np.ndarray:
        """Return each query's value [Q] when every fold stops at the largest prefix that fits the budget."""
        return self.at(np.array([len(cut(order, sizes, budget)) for order in self.orders]))

    def at_peak(self) -> np.ndarray:
        """Return each query's value [Q] when every fold stops where its own path is highest (at the first
        such).
        """
        return self.at(self.paths.argmax(axis=1) + 1)


def greedy_order(
    dot: np.ndarray,
    query_sq: np.ndarray | None,
    train_sq: np.ndarray | None,
    truth: np.ndarray,
    objective: str = "accuracy",
) -> tuple[np.ndarray, np.ndarray]:
    """Order all components: `dot` [Q, C, K], `query_sq` [Q, K], `train_sq` [Q, C, K], `truth` [Q, C] bool.

    Returns the order [K] (positions) and the mean objective [K] after each step. Pairs with a NaN are
    ignored. Without self-products (None) the score of a subset is a plain sum.
    """
    return order_components(Products.of(dot, query_sq, train_sq, truth), objective)


def order_components(
    products: Products, objective: str, among: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 2 over the components `among` [E] (positions, all by default): their order and the path's
    values.
    """
    remaining = np.arange(len(products.dot)) if among is None else np.sort(among)
    parts = [(part, judge(objective, part)) for part in products.blocks()]
    sums = [tuple(np.zeros(array.shape[1:]) for array in part.summed) for part, _ in parts]
    order, path = np.empty(len(remaining), np.int64), np.empty(len(remaining))
    for step in range(len(order)):
        both = list(zip(parts, sums, strict=True))
        values = [value(part.scores(*_grown(part, total, remaining))) for (part, value), total in both]
        means = np.concatenate(values, axis=-1).mean(axis=-1)
        best = int(means.argmax())  # the first of equals, which is parameter order
        order[step], path[step] = remaining[best], means[best]
        sums = [_grown(part, total, remaining[best]) for (part, _), total in both]
        remaining = np.delete(remaining, best)
    return order, path


def _grown(
    products: Products, sums: tuple[np.ndarray, ...], more: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sums of a subset's products with those of one more component, or of each of several."""
    dot, own, norm = (total + array[more] for total, array in zip(sums, products.summed, strict=True))
    return dot, own, norm


def search(products: Products, objective: str, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Order components by one of `SEARCHES`: Algorithm 2 under an objective, or `single`.

    `single` ranks components by the accuracy of each alone (ties in parameter order); its path is the
    accuracy along that order.
    """
    if objective != "single":
        return order_components(products, objective, among)
    among = np.arange(len(products.dot)) if among is None else np.sort(among)
    order = among[np.argsort(-products.single("accuracy").mean(axis=1)[among], kind="stable")]
    return order, products.along("accuracy", order).mean(axis=1)


def select(products: Products, sizes: np.ndarray, budget: float, objective: str = "accuracy") -> Selection:
    """Choose components for a budget (a fraction of all parameters); `sizes` [K] are parameter counts."""
    order, path = search(products, objective, admitted(sizes, budget))
    return Selection(order, path, cut(order, sizes, budget))


def admitted(sizes: np.ndarray, budget: float) -> np.ndarray:
    """Positions of the components that alone fit the budget; none is a `UserError`."""
    positions = np.flatnonzero(sizes <= _limit(sizes, budget))
    if not len(positions):
        raise _too_small(sizes, budget, int(sizes.min()), "the smallest component")
    return positions


def cut(order: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """Return the largest prefix of `order` whose parameters fit `budget` × all of `sizes` [K]."""
    count = int((np.cumsum(sizes[order]) <= _limit(sizes, budget)).sum())
    if not count:
        raise _too_small(sizes, budget, int(sizes[order[0]]), "the first component of the order")
    return order[:count]


def cross_validated(
    products: Products,
    objective: str,
    folds: int,
    seed: int,
    among: np.ndarray | None = None,
    judged: str = "accuracy",
) -> HeldOut:
    """Order components by `objective` (one of `SEARCHES`) on all folds but one; value the rest by `judged`.

    `among` as in `order_components`. Folds are drawn from `seed`, never more than there are queries. A single query
    leaves none to search on: its value is NaN.
    """
    count = products.dot.shape[-1]
    folds = min(folds, count)
    fold = np.random.default_rng(seed).permutation(np.arange(count) % folds)
    if folds < 2:
        order, path = search(products, objective, among)
        return HeldOut(fold, order[None], path[None], np.full((len(order), count), np.nan))
    orders, paths = [], []
    values = np.empty((len(products.dot) if among is None else len(among), count))
    for held in range(folds):
        order, path = search(products.rows(fold != held), objective, among)
        orders.append(order)
        paths.append(path)
        values[:, fold == held] = products.rows(fold == held).along(judged, order)
    return HeldOut(fold, np.array(orders), np.array(paths), values)


def _limit(sizes: np.ndarray, budget: float) -> float:
    if not 0 < budget <= 1:
        raise UserError(f"budget={budget:g}: must be above 0 and at most 1 (a fraction of all parameters)")
    return budget * float(sizes.sum()) * (1 + ROUNDING)


def _too_small(sizes: np.ndarray, budget: float, needed: int, what: str) -> UserError:
    total = int(sizes.sum())
    return UserError(
        f"budget={budget:g} admits {int(budget * total)} of {total} parameters, but {what} has {needed}; "
        f"set budget to {_up(needed / total)} or more"
    )


def _up(share: float) -> str:
    """Round up to three significant digits, so that the budget that the message names really works."""
    digits = 2 - int(np.floor(np.log10(share)))
    return f"{np.ceil(share * 10**digits) / 10**digits:g}"
