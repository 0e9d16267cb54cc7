"""What pruning keeps, against sorting by hand and against the layers themselves."""

import numpy as np
import pytest
import torch
from torch import nn

from tdaexp.metrics.pruning import agreement, largest, largest_units, units_of


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 7))


def shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_the_largest_stay(sparsity):
    scores = np.random.default_rng(0).integers(0, 6, 50).astype(float)  # with ties
    order = sorted(range(50), key=lambda place: (-scores[place], place))
    wanted = set(order[: round((1 - sparsity) * 50)])
    assert set(np.flatnonzero(largest(scores, sparsity))) == wanted


def test_units_are_outputs_of_layers(layers):
    units = units_of(shapes(layers))
    flat = torch.cat([parameter.detach().flatten() for parameter in layers.parameters()])
    assert units.layers.tolist() == [0] * 5 + [1] * 7
    norms = [layers[0].weight[k].abs().sum() + layers[0].bias[k].abs() for k in range(5)]
    norms += [layers[2].weight[k].abs().sum() + layers[2].bias[k].abs() for k in range(7)]
    np.testing.assert_allclose(units.norms(flat.numpy()), [float(norm.detach()) for norm in norms], rtol=1e-6)
    images = torch.randn(3, 2, 4, 4)
    for unit in (3, 5 + 2):
        vector = torch.where(torch.from_numpy(units.unit == unit), 0.0, flat)
        nn.utils.vector_to_parameters(vector, layers.parameters())
        layer, inputs = (layers[0], images) if unit < 5 else (layers[2], torch.randn(3, 20))
        silent = layer(inputs).transpose(0, 1).flatten(1).abs().sum(1) == 0
        assert silent.nonzero().flatten().tolist() == [unit % 5]


def test_units_are_ranked_within_their_layer_and_one_stays(layers):
    units = units_of(shapes(layers))
    scores = np.array([0.1, 0.5, 0.3, 0.2, 0.4, *range(10, 17)])
    kept = np.unique(units.unit[largest_units(scores, units, 0.6)])
    assert kept.tolist() == [1, 4, 9, 10, 11]  # 2 of 5 and 3 of 7
    assert np.unique(units.unit[largest_units(scores, units, 0.99)]).tolist() == [1, 11]


def test_measures_are_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    whole, pruned = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (30,), generator=generator)
    found = agreement(pruned.numpy(), whole.numpy(), targets.numpy())
    kl = nn.functional.kl_div(pruned.log_softmax(1), whole.log_softmax(1), reduction="batchmean", log_target=True)
    assert found["kl"] == pytest.approx(float(kl), rel=1e-12)
    assert found["accuracy"] == pytest.approx(float((pruned.argmax(1) == targets).double().mean()))
    assert found["agreement"] == pytest.approx(float((pruned.argmax(1) == whole.argmax(1)).double().mean()))
