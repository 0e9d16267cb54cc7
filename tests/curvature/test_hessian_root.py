"""Random signs through the root of the loss Hessian: its second moment exactly, and less spread than drawn labels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.hessian_root import random_signs, root_of
from tdaexp.curvature.layers import layers_of
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.models.discovery import discovered
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.numbers import Numbers
from tdaexp.runtime.errors import UserError

CLASSES = 4


def cross_entropy(logits):
    return nn.functional.cross_entropy(logits[None], torch.tensor([1]))


@pytest.mark.parametrize(
    ("objective", "loss"), [(Classes(), cross_entropy), (Numbers(), lambda numbers: numbers.square().sum() / 2)]
)
def test_the_mean_over_all_signs_is_the_hessian(objective, loss):
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0], dtype=torch.float64)
    every = torch.tensor(list(itertools.product([-1, 1], repeat=CLASSES)), dtype=torch.float64)
    found = root_of(objective)(logits.expand(len(every), -1), every)
    wanted = torch.autograd.functional.hessian(loss, logits)
    torch.testing.assert_close(found.T @ found / len(every), wanted, rtol=1e-12, atol=1e-14)


def test_padding_changes_no_sign():
    short, long = (random_signs(["a", "b"], 3, (positions, 5)) for positions in (2, 7))
    assert torch.equal(short, long[:, :2]) and set(short.flatten().tolist()) == {-1, 1}
    assert not torch.equal(long[0], long[1]) and not torch.equal(long, random_signs(["a", "b"], 4, (7, 5)))


@pytest.mark.parametrize(("scale", "share"), [(1.0, 1.0), (3.0, 0.5), (8.0, 0.02)])
def test_a_sure_models_gradients_spread_less_than_with_drawn_labels(scale, share):
    """E ‖zzᵀ - H‖² = E ‖z‖⁴ - ‖H‖², over all labels by their probability and over all signs."""
    logits = scale * torch.tensor([1.0, -0.5, 0.2, -1.5], dtype=torch.float64)
    p, every = logits.softmax(0), torch.tensor(list(itertools.product([-1.0, 1.0], repeat=CLASSES))).double()
    square = (torch.diag(p) - torch.outer(p, p)).square().sum()
    drawn = (p * (torch.eye(CLASSES) - p).square().sum(1).square()).sum() - square
    signed = root_of(Classes())(logits.expand(len(every), -1), every).square().sum(1).square().mean() - square
    assert 0 < signed < share * drawn


def test_factors_of_many_signs_are_those_of_the_gauss_newton_matrix(tmp_path):
    """S and the spectrum of a linear classifier, whose gradients' second moment has a closed form."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 3, generator=generator, dtype=torch.float64).repeat(2000, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, CLASSES)).double()
    p = model(inputs[:3]).detach().softmax(1)
    hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ids, targets = [f"x{n}" for n in range(len(inputs))], torch.zeros(len(inputs), dtype=torch.int64)
    layers = layers_of(discovered(model))
    gradients = Gradients(model, layers.map, TensorExamples(ids, inputs, targets), Classes())
    samples = FisherSamples(gradients, layers, 2000, "signs")
    factors = fit_factors(samples, FactorSettings(fisher="signs"), store=tmp_path)
    one, wide = factors["0"], torch.cat([inputs[:3], torch.ones(3, 1, dtype=torch.float64)], 1)
    rotated = torch.einsum("vo,nvw,wo->no", one.q_out, hessians, one.q_out)
    spectrum = (rotated[:, :, None] * (wide @ one.q_in).square()[:, None]).mean(0)
    for found, wanted in ((factors.covariance("0").outputs, hessians.mean(0)), (one.spectrum, spectrum)):
        assert float((found - wanted).norm() / wanted.norm()) < 0.03  # 6,000 draws
    assert (factors.labels() < 0).all()


class Other(Classes):
    def hessian(self, logits, directions):
        return directions


def test_a_loss_hessian_of_ones_own_has_no_root():
    with pytest.raises(UserError, match="Other has a loss Hessian of its own"):
        root_of(Other())
