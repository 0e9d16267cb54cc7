"""Predicting numbers: losses, noise that belongs to seed and id, and curvature."""

from __future__ import annotations

import torch
from torch import nn

from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.vector_products import gradient_vectors
from tdaexp.models.discovery import discovered
from tdaexp.objectives.numbers import Numbers

COUNT, WIDTH, OUTPUTS = 6, 3, 2
X = torch.randn(COUNT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(COUNT, OUTPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROWS = torch.cat([X, torch.ones(COUNT, 1, dtype=torch.float64)], dim=1)
EXAMPLES = TensorExamples([f"e{k}" for k in range(COUNT)], X, Y)


def linear() -> tuple[nn.Module, Gradients]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(WIDTH, OUTPUTS)).double()
    return model, Gradients(model, discovered(model), EXAMPLES, Numbers())


def test_gradients_are_those_of_half_the_squared_error():
    model, gradients = linear()
    errors = (model(X) - Y).detach()
    found = gradient_vectors(gradients, list(range(COUNT))).view(COUNT, OUTPUTS, WIDTH + 1)
    torch.testing.assert_close(found, errors[:, :, None] * ROWS[:, None])
    with gradients.ready():
        losses = gradients.capture(range(COUNT), lambda *_: None)
    torch.testing.assert_close(losses, 0.5 * errors.square().sum(1))


def test_the_curvature_of_a_linear_model_is_the_normal_matrix():
    ggn = TrainingGGN(linear()[1])
    wanted = torch.kron(torch.eye(OUTPUTS, dtype=torch.float64), ROWS.T @ ROWS / COUNT)
    torch.testing.assert_close(ggn.multiply(torch.eye(ggn.size, dtype=torch.float64)), wanted)


def test_the_noise_belongs_to_the_example_and_is_standard_normal():
    objective = Numbers()

    def noise(members: list[int], seed: int) -> torch.Tensor:
        means = torch.zeros(len(members), 1, OUTPUTS, dtype=torch.float64, requires_grad=True)
        losses, labels = objective.sampled(means, objective.batch(EXAMPLES, members), seed, None)
        assert (labels == 0).all()
        return -torch.autograd.grad(losses.sum(), means)[0][:, 0]

    assert torch.equal(noise([0, 1, 4], 0)[2], noise([4, 2], 0)[0])
    assert not torch.equal(noise([0], 0), noise([0], 1))
    many = torch.cat([noise(list(range(COUNT)), seed) for seed in range(700)])
    torch.testing.assert_close(many.T @ many / len(many), torch.eye(OUTPUTS, dtype=torch.float64), rtol=0, atol=0.08)
    assert float(many.mean(0).abs().max()) < 0.05
