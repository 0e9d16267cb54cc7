"""CKA: of gradients it is the squared cosine, of states the ratio of centred kernels, whatever the lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_problem import with_model, with_type

from tdaexp import influence
from tdaexp.methods.cka import CKA, linear_cka
from tdaexp.methods.repsim import RepSim
from tdaexp.runtime.errors import UserError


def test_linear_cka_is_the_alignment_of_centred_kernels():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)) + 3, rng.normal(size=(12, 7)) - 1
    centre = np.eye(12) - 1 / 12
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    wanted = (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(wanted, rel=1e-12)
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(2 * x[:, ::-1].copy())) == pytest.approx(1)
    assert linear_cka(torch.ones(4, 2), torch.ones(4, 3)) == 0


def test_of_gradients_it_is_the_squared_cosine(problem, compose):
    cosine = influence.scores(compose("method=full").attribute(problem)).values
    np.testing.assert_allclose(influence.scores(compose("method=cka").attribute(problem)).values, cosine**2, rtol=1e-6)
    assert (cosine < 0).any()  # so that the lost sign matters


@pytest.mark.parametrize("layer", [-1, 1])
def test_of_states_by_the_definition(problem, compose, layer):
    method = compose("method=cka", "method.of=states", f"method.layer={layer}")
    found = influence.scores(method.attribute(problem)).values
    assert method.label == "cka (states)"

    def states(example):
        tokens = torch.from_numpy(example.tokens)[None]
        return problem.loaded.model(tokens, output_hidden_states=True).hidden_states[layer][0].T

    for row in (0, 5):
        for column, index in enumerate(problem.pairs[row]):
            wanted = linear_cka(states(problem.queries[row]), states(problem.train[index]))
            assert found[row, column] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("method", [CKA("states"), RepSim()], ids=["cka", "repsim"])
def test_states_that_are_not_finite_are_no_similarity_of_zero(problem, method):
    broken = with_type(problem.loaded, problem.loaded.model.dtype)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[int(problem.train[2].tokens[1]), 0] = torch.nan
    with pytest.raises(UserError, match=r"example '.*': its hidden states? in layer -1 (is|are) not finite"):
        method.attribute(with_model(problem, broken))


def test_choices_that_do_not_exist(problem, compose):
    with pytest.raises(UserError, match="unknown of 'state'; did you mean 'states'"):
        compose("method=cka", "method.of=state")
    with pytest.raises(UserError, match="unknown layer '9'"):
        compose("method=cka", "method.of=states", "method.layer=9").attribute(problem)
