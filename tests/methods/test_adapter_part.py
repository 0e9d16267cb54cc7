"""A model with an adapter: its matrices are what is attributed to, unless another part is asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from adapted import by_peft, gradients, write_adapter
from tiny_problem import keep_checkpoints, with_model

from tdaexp import influence
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError
from tdaexp.selection.parts import PARTS

GRADIENTS = ["full", "dot", "project", "select", "tracin", "ekfac", "trak", "cg", "astra", "lissa", "arnoldi",
             "logra", "datainf", "trackstar"]  # fmt: skip


@pytest.fixture(scope="module")
def place(loaded, tmp_path_factory):
    """Folders with the tiny model, and with an adapter to it."""
    folder = tmp_path_factory.mktemp("adapted")
    with quiet_transformers():
        loaded.model.save_pretrained(folder / "base")
        loaded.tokenizer.save_pretrained(folder / "base")
    return folder / "base", write_adapter(folder / "base", folder / "adapter")


@pytest.fixture(scope="module")
def adapted(place):
    def load(**keys):
        return Pretrained(str(place[0]), adapter=str(place[1])).load(**keys)

    return load


def test_products_are_those_of_autograd(place, adapted, make_problem, compose, tmp_path):
    problem = with_model(make_problem(tmp_path, dtype=torch.float64), adapted(dtype=torch.float64))
    model = by_peft(*place)
    left, right = gradients(model, problem.queries), gradients(model, problem.train)
    dot = (left @ right.T).numpy()
    cosine = dot / np.outer(left.norm(dim=1), right.norm(dim=1))
    for name, wanted in (("dot", dot), ("full", cosine)):
        found = influence.scores(compose(f"method={name}").attribute(problem)).values
        expected = np.take_along_axis(wanted, problem.pairs, 1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [one for one in GRADIENTS if one != "tracin"])
def test_every_method_takes_the_adapter_where_nothing_is_said(name, adapted, make_problem, configured, tmp_path):
    problem = with_model(make_problem(tmp_path), adapted())
    found = configured(name).attribute(problem)
    if "component" in found.dims:
        names = set(map(str, found["component"].values))
        assert names and all(".lora_" in one for one in names)
    if name != "select":
        part = configured(name)
        part.part = "adapter"
        same = part.attribute(dataclasses.replace(problem, cache=tmp_path / "again"))
        np.testing.assert_array_equal(found["influence"].values, same["influence"].values)


def test_all_is_the_base_too(adapted, make_problem, compose, tmp_path):
    problem = with_model(make_problem(tmp_path), adapted())
    names = [str(one) for one in compose("method=dot", "method.part=all").attribute(problem)["component"].values]
    assert names == problem.map.names and len(names) == 15 + 8


def test_a_model_without_one(problem, compose):
    with pytest.raises(UserError, match=r"method.part=adapter: this model has no adapter; name one \(model.adapter="):
        compose("method=ekfac", "method.part=adapter").attribute(problem)
    assert PARTS["adapter"] == ".lora_"


def test_checkpoints_of_whole_models_are_no_adapters(loaded, tmp_path):
    keep_checkpoints(loaded, tmp_path)
    with pytest.raises(UserError, match=r"no adapter_config.json"):
        Pretrained(str(tmp_path / "model"), adapter=str(tmp_path / "checkpoints" / "step-10")).load()
