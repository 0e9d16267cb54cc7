"""Optimiser and schedule as the settings say."""

from __future__ import annotations

import pytest
import torch

from tdaexp.training.optimisers import build_optimizer, decays, learning_rate, learning_rate_factor
from tdaexp.training.settings import FitSettings


def test_schedules():
    linear = [learning_rate_factor(step, steps=12, warmup=4, schedule="linear") for step in range(12)]
    assert linear == pytest.approx([0.25, 0.5, 0.75, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    constant = [learning_rate_factor(step, steps=6, warmup=2, schedule="constant") for step in range(6)]
    assert constant == [0.5, 1, 1, 1, 1, 1]
    assert learning_rate(0, FitSettings(lr=0.3, warmup=3, schedule="constant")) == pytest.approx(0.1)


def test_decay_reaches_matrices_or_all():
    named = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    assert decays(named.items(), FitSettings(weight_decay=0.5)) == {"weight": 0.5, "bias": 0.0}
    assert decays(named.items(), FitSettings(weight_decay=0.5, decay="all")) == {"weight": 0.5, "bias": 0.5}
    groups = build_optimizer(named, FitSettings(weight_decay=0.5)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.5, 1), (0.0, 1)]


def test_torch_gets_every_setting():
    named = {"weight": torch.zeros(2, 2)}
    adamw = build_optimizer(named, FitSettings(betas=[0.5, 0.6], eps=1e-3, lr=0.2))
    assert type(adamw) is torch.optim.AdamW
    assert {key: adamw.defaults[key] for key in ("betas", "eps", "lr")} == {"betas": (0.5, 0.6), "eps": 1e-3, "lr": 0.2}
    sgd = build_optimizer(named, FitSettings(optimizer="sgd", momentum=0.9))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["dampening"], sgd.defaults["nesterov"]) == (0.9, 0, False)


def test_keys_at_their_defaults_leave_a_training_s_identity_as_it_was():
    assert set(FitSettings().deciding()) == {"steps", "batch_size", "lr", "warmup", "weight_decay", "clip"}
    assert FitSettings(momentum=0.9).deciding()["momentum"] == 0.9
    assert FitSettings(record=1, evaluate_every=3).deciding() == FitSettings().deciding()


def test_an_epsilon_inside_the_root():
    """Three steps of decoupled decay in two groups; with nothing inside the root it is torch's AdamW."""
    generator, start = torch.Generator().manual_seed(0), {"weight": torch.ones(2, 3), "bias": torch.ones(3)}
    slopes = [{name: torch.randn(one.shape, generator=generator) for name, one in start.items()} for _ in range(3)]

    def trained(settings: FitSettings) -> dict[str, torch.Tensor]:
        named = {name: one.double().clone().requires_grad_() for name, one in start.items()}
        optimizer = build_optimizer(named, settings)
        for slope in slopes:
            for name, one in named.items():
                one.grad = slope[name].double()
            optimizer.step()
        return {name: one.detach() for name, one in named.items()}

    keys = {"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-3, "weight_decay": 0.5}
    found = trained(FitSettings(**keys, eps_root=0.3))
    for name, one in start.items():
        value, first, second = one.double(), 0.0, 0.0
        for count, slope in enumerate(slopes, start=1):
            gradient = slope[name].double()
            first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
            divisor = torch.sqrt(second / (1 - 0.9**count) + 0.3) + 1e-3
            value = value * (1 - 0.1 * (0.5 if name == "weight" else 0.0)) - 0.1 * first / (1 - 0.8**count) / divisor
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)
    plain, nearly = trained(FitSettings(**keys)), trained(FitSettings(**keys, eps_root=1e-30))
    for name in start:
        torch.testing.assert_close(nearly[name], plain[name], rtol=1e-12, atol=0)
