"""A block of work reads no tensor's values between its batches: on a GPU each such read would make both sides wait."""

from collections import Counter

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of, make_examples
from kronecker_oracle import samples_of
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.products import component_products
from tdaexp.gradients.vector_products import gradient_vectors, vector_products
from tdaexp.models.components import component_map
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.runtime import deferred
from tdaexp.selection.parts import names_of

READS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "equal", "masked_select", "is_nonzero"}
"""Operations whose result the host has to know before it can go on."""


class Counting(TorchDispatchMode):
    """Counts operations that would wait for a device, were the tensors on one."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8) for one in flattened(args[1:2])
        )
        if name in READS or by_mask:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


class Fetching(TorchFunctionMode):
    """Counts copies to the host, which are no operations where a tensor is there already."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.cpu, torch.Tensor.tolist):
            self.found[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def flattened(values):
    for one in values:
        yield from flattened(one) if isinstance(one, (list, tuple)) else [one]


@pytest.fixture
def batches_do_not_matter(monkeypatch):
    """Checks that a block's work reads values as often for 2 batches as for 12; a flush counts once."""
    found: Counter[str] = Counter()
    flush = deferred.Deferred.flush

    def once(self) -> None:
        before = Counter(found)
        flush(self)
        found.clear()
        found.update(before + Counter(flush=1))

    monkeypatch.setattr(deferred, "waits", lambda tensor: True)  # as if every tensor were on a device
    monkeypatch.setattr(deferred.Deferred, "flush", once)

    def check(work) -> None:
        seen = []
        for size in (6, 1):
            found.clear()
            with Fetching(found), Counting(found):
                work(LENGTH * size)
            seen.append(dict(found))
        few, many = seen
        assert few["flush"] >= 1
        assert all(count <= few.get(name, 0) for name, count in many.items()), (few, many)

    return check


LENGTH = 9
EXAMPLES = make_examples(0, 12, LENGTH, LENGTH)
PAIRS = np.stack([np.arange(12), (np.arange(12) + 5) % 12], axis=1)


@pytest.fixture(scope="module")
def model(models):
    return models("gpt_neox-tied", torch.float32)


@pytest.fixture(scope="module")
def layers(model):
    components = component_map(model)
    return layers_of(components.select(names_of(components, "blocks")))


def test_products(model, batches_do_not_matter, tmp_path):
    side = gradients_of(model, EXAMPLES)

    @batches_do_not_matter
    def work(tokens: int) -> None:
        component_products(side, side, PAIRS, store=tmp_path / str(tokens), tokens_per_batch=tokens)


def test_products_with_vectors(model, batches_do_not_matter, tmp_path):
    side = gradients_of(model, EXAMPLES, reduction="sum")

    @batches_do_not_matter
    def work(tokens: int) -> None:
        vectors = gradient_vectors(side, list(range(12)), tokens_per_batch=tokens)
        store = tmp_path / str(tokens)
        vector_products(side, PAIRS, lambda queries: vectors[queries], store=store, tokens_per_batch=tokens)


def test_factors(model, layers, batches_do_not_matter, tmp_path):
    @batches_do_not_matter
    def work(tokens: int) -> None:
        source = samples_of(model, layers, EXAMPLES, tokens)
        fit_factors(source, FactorSettings(saves=1), store=tmp_path / str(tokens))


@pytest.mark.parametrize("rank", [None, 2])
def test_scores(rank, model, layers, batches_do_not_matter, tmp_path):
    side = gradients_of(model, EXAMPLES, layers.map)
    sides = LayerPairs(side, side, layers, lambda name, gradient: gradient, rank)

    @batches_do_not_matter
    def work(tokens: int) -> None:
        pair_scores(sides, PAIRS, store=tmp_path / str(tokens), tokens_per_batch=tokens)


def test_curvature_products(model, layers, batches_do_not_matter):
    @batches_do_not_matter
    def work(tokens: int) -> None:
        ggn = TrainingGGN(gradients_of(model, EXAMPLES, layers.components), tokens)
        ggn.multiply(torch.ones(1, ggn.size))
        deferred.Deferred().flush()  # the product itself is looked at without one


def test_classifiers(batches_do_not_matter, tmp_path, monkeypatch):
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.PReLU())
    ids = [str(number) for number in range(12)]
    examples = TensorExamples(ids, torch.randn(12, 3), torch.arange(12) % 2, {})

    side = Gradients(module, discovered(module), examples, Classes())  # that of PReLU is formed by autograd
    monkeypatch.setattr(Classes, "lengths", lambda *_: np.full(12, LENGTH))

    @batches_do_not_matter
    def work(tokens: int) -> None:
        component_products(side, side, PAIRS, store=tmp_path / str(tokens), tokens_per_batch=tokens)


def test_what_is_deferred_is_used_in_order_and_no_later_than_the_limit(monkeypatch):
    monkeypatch.setattr(deferred, "waits", lambda tensor: True)
    seen: list[float] = []
    later = deferred.Deferred()
    for number in range(deferred.LIMIT_CALLS):
        assert not seen
        later.add(lambda values: seen.append(float(values)), torch.tensor(float(number)))
    assert seen == list(range(deferred.LIMIT_CALLS))
    later.add(lambda values: seen.append(values.sum()), torch.ones(deferred.LIMIT_BYTES // 4 + 1))
    assert seen[-1] == deferred.LIMIT_BYTES // 4 + 1
