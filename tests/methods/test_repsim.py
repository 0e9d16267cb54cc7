"""Similarity of hidden states against transformers' own, one example at a time."""

import numpy as np
import pytest
import torch

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products


def states(loaded, examples, layer, pooling):
    """Hidden states [N, d] without batching, padding or mask."""
    rows = []
    for example in examples:
        with torch.no_grad():
            output = loaded.model(torch.from_numpy(example.tokens)[None], output_hidden_states=True)
        hidden = output.hidden_states[layer][0]
        rows.append(hidden[-1] if pooling == "last" else hidden.mean(0))
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [-1, 0, 1, 2, -3])
def test_cosines_of_hidden_states(make_problem, compose, tmp_path, layer, pooling):
    problem = make_problem(tmp_path, tokens_per_batch=200).after("pretrained")
    found = compose("method=repsim", f"method.layer={layer}", f"method.pooling={pooling}").attribute(problem)
    assert found["influence"].dims == ("query", "candidate")
    queries, train = (states(problem.loaded, part, layer, pooling) for part in (problem.queries, problem.train))
    for (q, c), t in np.ndenumerate(problem.pairs):
        wanted = queries[q] @ train[t] / np.linalg.norm(queries[q]) / np.linalg.norm(train[t])
        assert influence.scores(found).values[q, c] == pytest.approx(wanted, abs=1e-5)


def test_the_layers_and_poolings_differ(problem, compose):
    overrides = [["method.layer=-1"], ["method.layer=1"], ["method.pooling=mean"]]
    values = [compose("method=repsim", *one).attribute(problem)["influence"].values for one in overrides]
    assert np.abs(values[0] - values[1]).max() > 0.01 and np.abs(values[0] - values[2]).max() > 0.01


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_does_not_have(problem, compose, layer):
    with pytest.raises(UserError, match=rf"method.layer: unknown layer '{layer}'; .*choices: -3…2"):
        compose("method=repsim", f"method.layer={layer}").attribute(problem)


def test_an_unknown_pooling(compose):
    with pytest.raises(UserError, match="unknown pooling 'men'; did you mean 'mean'"):
        compose("method=repsim", "method.pooling=men")


def test_stored_products_are_not_enough(products_file, compose):
    with pytest.raises(UserError, match=r"method 'repsim' needs a model"):
        compose("method=repsim").from_products(read_products(products_file))
