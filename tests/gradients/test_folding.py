"""A query that compares two answers: its gradient is the difference, against autograd in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import tiny
from gradient_oracle import VARIANTS, build_model, gradients_of, make_examples, oracle

from tdaexp.data.examples import Examples
from tdaexp.gradients.explicit import explicit_gradients
from tdaexp.models.components import component_map
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.measurements import as_loss, named
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.errors import UserError

WANTED, OTHERS = make_examples(1, 4), make_examples(2, 4, longest=20)
MIXED = Examples([one if k == 2 else replace(one, rejected=OTHERS[k]) for k, one in enumerate(WANTED)])


def captured(model, examples: Examples, members: list[int] | None = None, **options) -> tuple[dict, torch.Tensor]:
    gradients, found = gradients_of(model, examples, **options), {}

    def consume(components, factors) -> None:
        linear = [one for one in factors if hasattr(one, "inputs")]
        assert len({id(one.inputs) for one in linear}) <= 1  # what reads one tensor still shares it
        found.update({component.name: one.materialise() for component, one in zip(components, factors, strict=True)})

    with gradients.ready():
        losses = gradients.capture(range(len(examples)) if members is None else members, consume)
    return found, losses


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_wanted_answer_minus_that_of_the_other(models, variant, reduction):
    model = models(variant, torch.float64)
    found, _ = captured(model, MIXED, reduction=reduction)
    wanted, others = (oracle(model, side, reduction) for side in (WANTED, OTHERS))
    for row, example in enumerate(MIXED):
        for k, component in enumerate(component_map(model).components):
            right = wanted[row][k] - (0 if example.rejected is None else others[row][k])
            error = (found[component.name][row] - right).norm() / wanted[row][k].norm()
            assert error < 1e-6, (component.name, float(error))  # some norms and softmaxes are float32 inside


@pytest.mark.parametrize(
    "measurement", ["log_likelihood", "answer_log_probability", "logit_margin", "first_token_logit"]
)
def test_every_measurement_is_a_difference(models, measurement):
    model, loss = models("llama-tied", torch.float64), as_loss(named(measurement))
    (_, both), (_, wanted), (_, others) = (captured(model, side, loss=loss) for side in (MIXED, WANTED, OTHERS))
    counted = torch.tensor([one.rejected is not None for one in MIXED])
    torch.testing.assert_close(both, wanted - torch.where(counted, others, 0.0))


@pytest.mark.parametrize("family", ["Mixtral", "Qwen 3, experts", "Gemma 2", "OPT"])
def test_experts_and_other_layers_have_the_same_difference(family):
    """Each side alone is held against autograd where the architectures are tested."""
    model = tiny(family, torch.float64)
    sides = [captured(model, side)[0] for side in (MIXED, WANTED, OTHERS)]
    for name, both in sides[0].items():
        wanted, others = (side[name] for side in sides[1:])
        right = torch.stack([wanted[k] - (0 if one.rejected is None else others[k]) for k, one in enumerate(MIXED)])
        assert (both - right).norm() <= 1e-6 * (wanted.norm() + others.norm()), name


def test_batches_change_nothing(models):
    model = models("bloom-tied", torch.float64)
    whole, losses = captured(model, MIXED)
    for member in range(len(MIXED)):
        alone, loss = captured(model, MIXED, [member])
        torch.testing.assert_close(loss[0], losses[member])
        for name, gradient in alone.items():
            torch.testing.assert_close(gradient[0], whole[name][member], rtol=1e-6, atol=1e-7)


def test_parameters_without_a_rule_have_the_same_difference(models):
    model = models("llama-untied", torch.float64)
    name = "model.layers.0.mlp.up_proj.weight"
    found, losses = explicit_gradients(model, [name], NextToken(), NextToken().batch(MIXED, range(4)), cross_entropy)
    captured_ones, right = captured(model, MIXED)
    torch.testing.assert_close(losses, right)
    torch.testing.assert_close(found[name].flatten(1), captured_ones["layers.0.mlp.up"])


def test_lengths_bound_both_rows():
    plain = NextToken().lengths(None, WANTED)
    np.testing.assert_array_equal(plain, WANTED.lengths)
    both = NextToken().lengths(None, MIXED)
    reach = NextToken().reach(build_model("llama-tied"), MIXED)
    sides = [NextToken().reach(build_model("llama-tied"), side) for side in (WANTED, OTHERS)]
    counted = np.array([one.rejected is not None for one in MIXED])
    for name in ("below", "at_loss"):
        mine, others = (getattr(side, name) for side in sides)
        np.testing.assert_array_equal(getattr(reach, name), 2 * np.where(counted, np.maximum(mine, others), mine))
    longest = [one.length if one.rejected is None else max(one.length, one.rejected.length) for one in MIXED]
    np.testing.assert_array_equal(both, 2 * np.array(longest))


def test_another_rejected_answer_is_another_list():
    moved = Examples([replace(MIXED[0], rejected=OTHERS[1]), *MIXED.items[1:]])
    assert len({side.fingerprint() for side in (WANTED, MIXED, moved)}) == 3


def test_states_of_one_text_are_not_compared(models):
    with pytest.raises(UserError, match="query 'e0' compares two answers"):
        NextToken().states(models("llama-tied"), MIXED, [0, 1], -1)
