"""Kind 1: the model's own forward decides; shared weights and modules that run twice are refused by name."""

import logging

import numpy as np
import pytest
import small_models as small
import torch
from commands import only
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tdaexp import influence
from tdaexp.curvature.fisher import FisherSamples
from tdaexp.curvature.ggn import OutputsOf
from tdaexp.curvature.layers import layers_of
from tdaexp.data.examples import Example, Examples
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import Gradients
from tdaexp.models.components import component_map
from tdaexp.models.discovery import discovered
from tdaexp.models.forward import hidden_states, logits_at, runs_whole
from tdaexp.models.pretrained import Pretrained
from tdaexp.objectives.base import Inputs
from tdaexp.objectives.classes import Classes
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.errors import UserError


def gradient(model, tokens: list[int], start: int) -> torch.Tensor:
    """The gradient of the mean loss over tokens[start:] by autograd, flat."""
    logits, where = model(torch.tensor([tokens])).logits[0], torch.arange(start, len(tokens))
    loss = nn.functional.cross_entropy(logits[where - 1], torch.tensor(tokens)[where])
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])


def right_products(folder, trust: bool) -> np.ndarray:
    """Dot products [query, row] of whole gradients, one example at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, trust_remote_code=trust).eval()
    words = AutoTokenizer.from_pretrained(folder)

    def of(prompt: str, completion: str) -> torch.Tensor:
        head = words(prompt + "\n")["input_ids"]
        whole = words(prompt + "\n" + completion)["input_ids"]
        return gradient(model, [*whole, words.eos_token_id], len(head))

    train = torch.stack([of(row["prompt"], row["completion"]) for row in small.ROWS])
    asked = torch.stack([of(row["prompt"], row["para"]) for row in small.ROWS])
    return (asked @ train.T).numpy()


@pytest.fixture
def own(tmp_path):
    return small.with_own_forward(tmp_path / "model")


@pytest.fixture
def loaded(own):
    return Pretrained(str(own), trust_remote_code=True).load(dtype=torch.float64)


@pytest.mark.parametrize("trust", [True, False])
def test_scores_are_those_of_the_models_own_forward(commands, own, tmp_path, trust):
    data = small.rows(tmp_path / "rows.jsonl")
    own_code = f"model.trust_remote_code={str(trust).lower()}"
    said = commands.done("attribute", *small.arguments(own, data, "method=dot", own_code))
    assert ("the model runs whole" in said) is trust
    found = influence.dense(influence.load(only("outputs/attribute/*/influence.zarr")))
    found = found.sel(train=[row["id"] for row in small.ROWS]).values
    np.testing.assert_allclose(found, right_products(own, trust), rtol=1e-6, atol=1e-7)


def test_a_usual_model_takes_the_shortcut_without_a_word(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = Pretrained(str(small.llama(tmp_path / "model"))).load().model
    assert not runs_whole(model) and "whole" not in caplog.text


def test_everything_that_reads_logits_reads_the_models_own(loaded):
    model, tokens = loaded.model, torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])
    positions = torch.tensor([[1, 3], [0, 2]])
    assert runs_whole(model)
    whole = model(tokens).logits
    wanted = whole.gather(1, positions[..., None].expand(-1, -1, whole.shape[2]))
    torch.testing.assert_close(logits_at(model, tokens, positions), wanted)
    inputs = Inputs(["a", "b"], tokens, tokens[:, :2], torch.ones(2, 2), positions)
    torch.testing.assert_close(OutputsOf(model, NextToken())(inputs), wanted)
    states = hidden_states(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(states[-1], model.base_model(tokens).last_hidden_state)


def test_curvature_of_the_head_counts_the_positions_with_loss_alone(loaded):
    """A head that runs at every position brings as many rows as it did at those with loss."""
    mask = np.array([False, False, True, True, False])
    example = Example("one", np.array([3, 4, 5, 6, 7]), mask, "")
    layers = layers_of(component_map(loaded.model).select(["lm_head"]))
    gradients = Gradients(loaded.model, layers.map, Examples([example]), NextToken(), reduction="sum")
    source, seen = FisherSamples(gradients, layers), []
    with source.ready():
        source.run([0], ["lm_head"], None, 0, lambda names, factors, real: seen.append((factors[0], real)))
    (factors, real), = seen  # fmt: skip
    assert factors.inputs.shape[1] == 3 and real.tolist() == [1, 2]


def captured(model) -> None:
    examples = Examples([Example("one", np.array([3, 4, 5, 6]), np.array([False, False, True, True]), "")])
    gradients = Gradients(model, component_map(model), examples, NextToken())
    with gradients.ready():
        gradients.capture([0], lambda components, factors: None)


def usual(tmp_path):
    return Pretrained(str(small.llama(tmp_path / "model"))).load().model


def test_one_weight_in_two_modules_is_refused_by_name(tmp_path):
    model = usual(tmp_path)
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj.weight' and '.*layers.1.mlp.up_proj.weight' are one"):
        captured(model)


def test_one_module_in_two_places_is_refused_by_name(tmp_path):
    model = usual(tmp_path)
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj = first.up_proj
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj.weight' and '.*layers.1.mlp.up_proj.weight' are one"):
        captured(model)


def test_a_module_that_runs_twice_is_refused_by_name(tmp_path):
    model = usual(tmp_path)
    inner = model.model.layers[0].mlp
    plain = inner.forward
    inner.forward = lambda states: plain(plain(states))
    with pytest.raises(UserError, match=r"'model.layers.0.mlp.gate_proj' runs more than once in a forward pass"):
        captured(model)


def test_a_module_that_never_runs_is_refused_by_name(tmp_path):
    model = usual(tmp_path)
    model.model.layers[1].mlp.forward = lambda states: states
    with pytest.raises(UserError, match=r"no gradient reached the components layers.1.mlp.gate"):
        captured(model)


def test_a_tied_head_is_no_weight_in_two_modules(tmp_path):
    model = Pretrained(str(small.llama(tmp_path / "model", tie_word_embeddings=True))).load().model
    captured(model)


def test_a_shared_weight_of_a_classifier_counts_once():
    """It has no rule, so that autograd forms its gradient, which is a sum over both places."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    components = discovered(model)
    assert components.names == ["0", "2"] and components.sizes.tolist() == [12, 3]
    assert not any(component.captured for component in components.components)
    examples = TensorExamples(["a", "b"], torch.randn(2, 3).double(), torch.tensor([0, 2]))
    gradients, found = Gradients(model, components, examples, Classes()), {}
    with gradients.ready():
        gradients.capture([0, 1], lambda arrived, factors: found.update({arrived[0].name: factors[0].gradient}))
    for row in range(2):
        loss = nn.functional.cross_entropy(model(examples.inputs[row : row + 1]), examples.targets[row : row + 1])
        weight, *biases = torch.autograd.grad(loss, [model[0].weight, model[0].bias, model[2].bias])
        torch.testing.assert_close(found["0"][row], torch.cat([weight.flatten(), biases[0]]))
        torch.testing.assert_close(found["2"][row], biases[1])
