"""The table of rules and nodes, from stores whose agreement and KL are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from tdaexp.papers.base import Evidence
from tdaexp.papers.explaind_table1 import ExplaindTable1
from tdaexp.runtime.errors import UserError


def store(
    model: str, rule: str, nodes: float, wrong: float = 0.0, tolerance: float | None = None, **attrs
) -> xr.Dataset:
    """Two queries, two classes: the model says class 0 by a logit of one; the sums are `wrong` about it."""
    change, zero = np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2))
    residual = np.array([[wrong, 0.0], [0.0, 0.0]])
    data = {"start": zero, "change": change, "explained": change - residual, "residual": residual}
    quadrature = {"rule": rule, "nodes": 1, "tolerance": tolerance, "most": 16}
    return xr.Dataset(
        {**{name: (("query", "output"), values) for name, values in data.items()}, "nodes": ("step", [nodes, nodes])},
        attrs={
            "method": "explaind", "output": "logits", "label": "explaind",
            "config": {"model": {"name": model}, "method": {"quadrature": quadrature}}, **attrs,
        },
    )  # fmt: skip


def test_a_row_for_each_store_and_a_claim_for_each_model():
    stores = [
        store("cnn", "gauss", 1, wrong=2.0),
        store("cnn", "gauss", 1.5, tolerance=0.1),
        store("cnn", "midpoint", 100),
        store("cnn", "auto", 2).assign_attrs(rule="secant"),
        store("net", "left", 10, wrong=2.0),
        store("net", "gauss", 1, output="loss"),
    ]
    found = ExplaindTable1().run(Evidence(SimpleNamespace(), stores))
    table = found.tables["table1"].set_index(["model", "rule", "evaluations"])
    assert len(table) == 5 and ("cnn", "secant", 2.0) in table.index
    wrong, exact = table.loc[("cnn", "gauss", 1.0)], table.loc[("cnn", "gauss", 1.5)]
    assert wrong["agreement"] == 0.5 and exact["agreement"] == 1.0
    # one of two queries has its odds turned: KL (e/(1+e) − 1/(1+e)) over two
    assert wrong["kl"] == pytest.approx((np.e - 1) / (np.e + 1) / 2) and exact["kl"] == pytest.approx(0, abs=1e-15)
    assert [statement.tone for statement in found.statements] == ["good", "open"]
    assert found.metrics["table1/cnn/midpoint/1/agreement"] == 1.0
    strict = ExplaindTable1(evaluations=1.2).run(Evidence(SimpleNamespace(), stores))
    assert strict.statements[0].tone == "bad" and "Agreement 0.5000" in strict.statements[0].text


def test_stores_of_other_outputs_alone_are_refused():
    with pytest.raises(UserError, match="no store decomposes logits"):
        ExplaindTable1().run(Evidence(SimpleNamespace(), [store("net", "gauss", 1, output="loss")]))
