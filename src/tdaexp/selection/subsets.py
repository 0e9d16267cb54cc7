"""What a subset of components scores, from stored products alone (Select or Project, sections 3.2, 5.3 and A.2).

The input is, per component k, the dot product of query i's and candidate j's gradients and both
self-products; the cosine of any subset S follows from sums:

    cos_S(i, j) = Σ_{k∈S} dot[i,j,k] / (sqrt(Σ_{k∈S} query_sq[i,k]) sqrt(Σ_{k∈S} train_sq[i,j,k]) + ε)

Without self-products (a method whose answer is no cosine, such as EK-FAC) a subset's score is the sum Σ_{k∈S} dot.

Three objectives judge a subset; all give a value per query, and larger is better:

* `accuracy`: 1 if a source of the query scores strictly higher than every other candidate, else 0 (section 3.2).
* `fidelity`: how similar the subset's similarities are to those of the full gradient (section 5.3, figure 5), as the
  cosine between the query's score vector over its candidates and the full gradient's. The paper gives no formula.
* `lds`: how well sums of the subset's scores foretell models trained again (`metrics.lds`): Spearman's correlation over
  subsets of the training examples. For products that know what such models answered (`Trials`).

Score arrays here are [..., C, Q]: with queries last, numpy's reductions over the few candidates are fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from tdaexp import influence
from tdaexp.influence import EPSILON
from tdaexp.runtime.errors import unknown
from tdaexp.runtime.rows import runs
from tdaexp.selection.trials import LDS, Trials, foretold, in_order

OBJECTIVES = ("accuracy", "fidelity")
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]
"""Of some queries: `dot` [q, C, K], `query_sq` [q, K], `train_sq` [q, C, K] and `truth` [q, C]."""


@dataclass(frozen=True)
class Products:
    """The numbers that a selection works on, float64.

    `dot` [K, C, Q], `query_sq` [K, Q], `train_sq` [K, C, Q]; `source` and `rival` [C, Q] bool: the candidate
    exists and is, or is not, a source of the query. Where a query has fewer than C candidates both are False
    and the products are 0. `plain`: scores are sums of `dot`, and the self-products are all 0. `trials`: models that
    were trained again, where they are known; candidates then stand in the order of the training examples.
    """

    dot: np.ndarray
    query_sq: np.ndarray
    train_sq: np.ndarray
    source: np.ndarray
    rival: np.ndarray
    plain: bool = False
    trials: Trials | None = None

    @classmethod
    def of(
        cls, dot: np.ndarray, query_sq: np.ndarray | None, train_sq: np.ndarray | None, truth: np.ndarray
    ) -> Products:
        """Arrange `dot` [Q, C, K], `query_sq` [Q, K], `train_sq` [Q, C, K], `truth` [Q, C] bool.

        A pair with a NaN in any component is a candidate that does not exist. Without self-products (None) scores are
        plain sums.
        """
        return cls.joined([(dot, query_sq, train_sq, truth)], len(dot))

    @classmethod
    def joined(cls, parts: Iterable[Arrays], queries: int) -> Products:
        """As `of`, from the arrays of some queries after the other."""
        done, found = 0, None
        for dot, own, norms, truth in parts:
            found = found or cls._blank(dot, queries, own is None or norms is None)
            mine = slice(done, done + len(dot))
            valid = np.asarray(~np.isnan(dot).any(axis=2))
            if own is not None and norms is not None:
                valid &= ~np.isnan(norms).any(axis=2)
                found.query_sq[:, mine] = own.T
                found.train_sq[..., mine] = np.where(valid[..., None], norms, 0.0).transpose(2, 1, 0)
            found.dot[..., mine] = np.where(valid[..., None], dot, 0.0).transpose(2, 1, 0)
            found.source[:, mine] = (np.asarray(truth, bool) & valid).T
            found.rival[:, mine] = valid.T & ~found.source[:, mine]
            done = mine.stop
        if found is None:
            raise ValueError("there is no array")
        return found

    @classmethod
    def _blank(cls, dot: np.ndarray, queries: int, plain: bool) -> Products:
        """Nothing but zeros, for so many queries with as many candidates and components as `dot` [q, C, K]."""
        shape = dot.shape[2], dot.shape[1], queries
        source, rival = (np.zeros(shape[1:], bool) for _ in range(2))
        return cls(np.zeros(shape), np.zeros(shape[::2]), np.zeros(shape), source, rival, plain)

    @property
    def summed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is summed over the components of a subset."""
        return self.dot, self.query_sq, self.train_sq

    def blocks(self) -> list[Products]:
        """The products by runs of queries, so that what is made of one takes a few MB; of few queries, themselves."""
        cuts = list(runs(self.dot.shape[-1], 8.0 * self.dot.shape[0] * self.dot.shape[1]))
        return [self] if len(cuts) == 1 else [self.rows(cut) for cut in cuts]

    def scores(self, dot: np.ndarray, query_sq: np.ndarray, train_sq: np.ndarray) -> np.ndarray:
        """Scores [..., C, Q] of subsets from their sums, shapes as for `cosine`."""
        return dot if self.plain else cosine(dot, query_sq, train_sq)

    def rows(self, keep: np.ndarray | slice) -> Products:
        """Return the products of some queries only (`keep`: positions, a mask or a run over Q)."""
        names = ("dot", "query_sq", "train_sq", "source", "rival")
        kept: dict[str, Any] = {name: np.ascontiguousarray(getattr(self, name)[..., keep]) for name in names}
        if self.trials is not None:
            kept["trials"] = replace(self.trials, outputs=self.trials.outputs[:, keep])
        return replace(self, **kept)

    def judged_by(self, keep: np.ndarray) -> Products:
        """Return the products judged by some of the models that were trained again (`keep`: a mask over S)."""
        if self.trials is None:
            raise ValueError("nothing is known of models trained again")
        return replace(self, trials=Trials(self.trials.members[keep], self.trials.outputs[keep]))

    def of_subset(self, chosen: np.ndarray) -> np.ndarray:
        """Return the scores [C, Q] of a subset of components (positions)."""
        return self.scores(*(array[chosen].sum(axis=0) for array in self.summed))

    def full(self) -> np.ndarray:
        """Return the full gradient's scores [C, Q] (0 where there is no candidate)."""
        return self.scores(self.dot.sum(axis=0), self.query_sq.sum(axis=0), self.train_sq.sum(axis=0))

    def single(self, objective: str) -> np.ndarray:
        """Return the objective's value [K, Q] for each component alone."""
        parts = [judge(objective, part)(part.scores(*part.summed)) for part in self.blocks()]
        return np.concatenate(parts, axis=-1)

    def along(self, objective: str, order: np.ndarray) -> np.ndarray:
        """Return the objective's value [len(order), Q] for the subsets that grow along `order`."""
        return np.concatenate([part._along(objective, order) for part in self.blocks()], axis=-1)

    def _along(self, objective: str, order: np.ndarray) -> np.ndarray:
        value = judge(objective, self)
        dot, own, norm = (np.zeros(part.shape[1:]) for part in self.summed)
        rows = np.empty((len(order), self.dot.shape[-1]))
        for step, k in enumerate(order):
            dot, own, norm = dot + self.dot[k], own + self.query_sq[k], norm + self.train_sq[k]
            rows[step] = value(self.scores(dot, own, norm))
        return rows


def products_of(dataset: xr.Dataset) -> Products:
    """Arrange an influence data set for selection: cosines where it keeps self-products, else plain sums.

    A data set with `member` [subset, row] and `retrained` [subset, query] has trials. Errors (UserError): then a query
    lacks a training example.
    """
    if "retrained" not in dataset:
        return Products.joined(map(_arrays, influence.blocks(dataset)), dataset.sizes["query"])
    rows = pd.Index(dataset["row"].values)
    parts = (_arrays(part, in_order(part["train"].values, rows)) for part in influence.blocks(dataset))
    trials = Trials(dataset["member"].values.astype(bool), dataset["retrained"].values)
    return replace(Products.joined(parts, dataset.sizes["query"]), trials=trials)


def _arrays(part: xr.Dataset, order: np.ndarray | None = None) -> Arrays:
    """A block's arrays, candidates in an `order` [q, C] of their columns."""
    query_sq, train_sq = (part[name].values if name in part else None for name in ("query_sq", "train_sq"))
    dot, truth = part["influence"].values, part["truth"].values
    if order is None:
        return dot, query_sq, train_sq, truth
    deep = order[..., None]
    norms = None if train_sq is None else np.take_along_axis(train_sq, deep, 1)
    return np.take_along_axis(dot, deep, 1), query_sq, norms, np.take_along_axis(truth, order, 1)


def cosine(dot: np.ndarray, query_sq: np.ndarray, train_sq: np.ndarray) -> np.ndarray:
    """Cosines [..., C, Q] from sums `dot` [..., C, Q], `query_sq` [..., Q], `train_sq` [..., C, Q]."""
    norms = np.sqrt(train_sq)
    norms *= np.sqrt(query_sq)[..., None, :]
    norms += EPSILON
    return np.asarray(np.divide(dot, norms, out=norms))


def retrieved(scores: np.ndarray, source: np.ndarray, rival: np.ndarray) -> np.ndarray:
    """Tell for each query whether a source scores strictly higher than every rival: [..., C, Q] to bool [..., Q].

    A query without a source among its candidates is not retrieved; one with nothing but sources is.
    """
    best = np.where(source, scores, -np.inf).max(axis=-2)
    return np.asarray(best > np.where(rival, scores, -np.inf).max(axis=-2))


def similarity(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine over the candidates between score vectors: [..., C, Q] against [C, Q], to [..., Q].

    Both are 0 where there is no candidate. Two vectors of which one is all zeros have similarity 0.
    """
    norms = np.sqrt((scores * scores).sum(axis=-2)) * np.sqrt((reference * reference).sum(axis=-2))
    return np.asarray((scores * reference).sum(axis=-2) / (norms + EPSILON))


def judge(objective: str, products: Products) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that gives score arrays [..., C, Q] a value per query [..., Q]."""
    if objective == "accuracy":
        return lambda scores: retrieved(scores, products.source, products.rival)
    if objective == "fidelity":
        full = products.full()
        return lambda scores: similarity(scores, full)
    trials = products.trials
    if objective == LDS and trials is not None:
        return lambda scores: foretold(scores, trials)
    raise unknown("objective", objective, OBJECTIVES, "method.objective")
