"""BM25: lexical similarity of query and training text, the control that every gradient method has to beat.

Source: Robertson and Zaragoza 2009, by way of the candidates' own index. With n(w, z) how often the
word w is in z, and |z| the words of z over their mean,

    s(z, q) = Σ_{w in q} idf(w) n(w, z) (k₁ + 1) / (n(w, z) + k₁ (1 − b + b |z|))

Sign: more overlap = higher. Fills query and train. Cost: none beyond the candidates'.

Scale: no unit; compare within a query. Limits: knows words alone and nothing of the model; a question whose answer
stands in its source word for word is easy for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from tdaexp.methods.base import Method
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Problem
from tdaexp.runtime.errors import UserError


@dataclass
class BM25(Method):
    """No keys: the index, its field and its tokens are those of the `candidates` group."""

    @property
    def reads_model(self) -> bool:
        """No."""
        return False

    @property
    def linear(self) -> bool:
        """A control: the mean over questions is what it says of them."""
        return True

    def attribute(self, problem: Problem) -> xr.Dataset:
        """The BM25 score of every candidate pair. Errors (UserError): the examples have no words."""
        if not isinstance(problem.objective, NextToken):
            raise UserError(
                "method=bm25: compares words, and these examples have none; take method=random as a control"
            )
        return problem.label(problem.candidates.bm25)

    def from_products(self, products: xr.Dataset) -> xr.Dataset:
        """The lexical scores (or ranks) that came with the products."""
        scores = products.drop_vars(["influence", "query_sq", "train_sq"])
        scores["influence"] = products["bm25"]
        return scores.drop_vars(["component", "size"]).assign_attrs(normalise="none")
