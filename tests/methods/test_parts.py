"""`part` is the components that it stands for, in every method that has components."""

import numpy as np
import pytest
from tiny_problem import PARAMETER

from tdaexp.methods.cka import CKA
from tdaexp.methods.datainf import DataInf
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.full import Full
from tdaexp.methods.less import LESS
from tdaexp.methods.logra import LoGra
from tdaexp.methods.project import Project
from tdaexp.methods.select import Select
from tdaexp.methods.tracin import TracIn
from tdaexp.methods.trackstar import TrackStar
from tdaexp.methods.trak import TRAK
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import PARTS
from tdaexp.selection.products_file import read_products

WHOLE = (Full, Dot, Project, CKA, TracIn)
MLP = [name for name in PARAMETER if ".mlp." in name]


@pytest.mark.parametrize("name", ["full", "dot", "project", "cka", "tracin", "ekfac", "trak", "logra", "less"])
def test_a_part_is_the_components_that_it_stands_for(name, configured, problem):
    part, named = configured(name), configured(name)
    part.part, named.components = "mlp", MLP
    one, other = part.attribute(problem), named.attribute(problem)
    if "component" in one.dims:
        assert list(one["component"].values) == list(other["component"].values) == MLP
    np.testing.assert_array_equal(one["influence"].values, other["influence"].values)


@pytest.mark.parametrize("name", ["full", "dot", "project", "cka", "tracin"])
def test_all_is_what_is_taken_where_nothing_is_said(name, configured, problem):
    usual, named = configured(name), configured(name)
    assert usual.part is None
    named.components = list(PARAMETER)
    one, other = usual.attribute(problem), named.attribute(problem)
    np.testing.assert_array_equal(one["influence"].values, other["influence"].values)


def test_selection_is_on_a_part(problem):
    found = Select(on=Full(part="attention"), budget=0.5).attribute(problem)
    assert list(found["component"].values) == [name for name in PARAMETER if ".attn." in name]


def test_stored_products_are_restricted_to_names(products_file):
    products = read_products(products_file)
    kept = [str(name) for name in products["component"].values][:2]
    assert list(Full(components=kept).from_products(products)["component"].values) == kept
    assert Full().from_products(products) is products
    with pytest.raises(UserError, match=r"method.part=mlp: the stored products have no such component"):
        Dot(part="mlp").from_products(products)


@pytest.mark.parametrize("cls", [*WHOLE, LESS, EKFAC, TRAK, LoGra, DataInf, TrackStar])
def test_what_is_not_usual_is_told(cls):
    usual = cls().label
    for part in PARTS:
        assert (cls(part=part).label == usual) == (part == ("all" if cls in (*WHOLE, LESS) else "blocks"))
    assert "mlp" in cls(part="mlp").label and "2 components" in cls(components=["a", "b"]).label
    with pytest.raises(UserError, match=r"method.part.*'heads'.*adapter, all, attention, blocks, mlp"):
        cls(part="heads")
