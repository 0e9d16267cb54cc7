"""The recorded training of a language model: its losses, its updates, and its decomposition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from recorded_problem import recorded_problem
from safetensors.torch import load_file

from tdaexp.data.biographies import Biographies
from tdaexp.data.examples import collate
from tdaexp.data.tokenise import tokenise
from tdaexp.methods.explaind import Explaind
from tdaexp.models.completion_task import PREFIX, CompletionTask, as_tensors
from tdaexp.models.scratch import Scratch
from tdaexp.pathkernel.quadrature import Quadrature
from tdaexp.runtime.errors import UserError
from tdaexp.training.language import trained_language
from tdaexp.training.module import causal_loss
from tdaexp.training.settings import FitSettings
from tdaexp.training.trained import Tokenisation, trained

OLMO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "tie_word_embeddings": True}  # fmt: skip
LLAMA = {**OLMO, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
NEOX = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
FIT = FitSettings(steps=5, batch_size=7, lr=5e-3, warmup=2, weight_decay=0.1, clip=0, record=1)
DATA = Biographies(people=8, topics=2, query_sets=["paraphrased"])


def model(architecture="olmo", sizes=OLMO):
    return Scratch(architecture, sizes, vocab_size=320, context=128, name=architecture)


def recorded(cache, fit=FIT, **which):
    corpus = DATA.load()
    queries = {"paraphrased": corpus.queries["paraphrased"][:4]}
    return trained_language(model(**which), corpus.train, queries, fit, Tokenisation("plain"), cache_dir=cache, seed=0)


def study_of(task, cache, dtype=torch.float32):
    module = task.module.to(dtype)
    return recorded_problem(module, task.corpus, task.trajectory, cache, components=task.components, dtype=dtype)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("language")


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("olmo", OLMO), ("llama", LLAMA), ("gpt2", GPT2), ("gpt_neox", NEOX)]
)
def test_losses_are_those_of_training_whatever_the_padding(architecture, sizes):
    records = DATA.load().train[:5]
    start = model(architecture, sizes).start([record.text for record in records])
    examples = tokenise(records, start.tokenizer, template="plain", max_length=128)
    batch = collate(examples)
    expected = float(causal_loss(start.model, batch)) * int(batch.loss_mask.sum())
    task = CompletionTask(start.model)
    narrow, wide = (as_tensors(examples, width).inputs for width in (batch.tokens.shape[1], 128))
    with torch.no_grad():
        assert float(task.token_losses(narrow).sum()) == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(task.token_losses(wide).sum(1), task.token_losses(narrow).sum(1))
        alone = torch.cat([task.token_losses(narrow[k, None]).sum(1) for k in range(5)])
        torch.testing.assert_close(alone, task.token_losses(narrow).sum(1))
        logits = task(narrow)
    first = torch.zeros(5, dtype=torch.int64)
    losses = torch.nn.functional.cross_entropy(logits, first, reduction="none")
    torch.testing.assert_close(losses, task.token_losses(narrow).sum(1))
    components = task.components()
    assert components.sizes.sum() == start.model.num_parameters() and "layers.1.mlp.up" in components.names


def test_the_recorded_training_is_the_plain_one(cache):
    """Lightning's, by SGD: Adam would blow the rounding of a vanishing gradient up to a whole step."""
    fit = dataclasses.replace(FIT, optimizer="sgd", momentum=0.9, lr=0.1)
    task = recorded(cache, fit)
    plain = trained(
        model(), DATA.load().train, dataclasses.replace(fit, record=0), Tokenisation("plain"), cache_dir=cache, seed=0
    )
    end = task.trajectory.parameters(5)
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(end[PREFIX + name], parameter, rtol=1e-4, atol=1e-6)
        assert float((end[PREFIX + name] - task.trajectory.parameters(0)[PREFIX + name]).abs().max()) > 1e-4
    saved = load_file(task.folder / "model" / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in end.items())
    ids, weights = task.trajectory.batch(0)
    tokens = task.corpus.train.inputs[torch.from_numpy(ids)][:, 1:, 1].sum()
    assert len(ids) == 7 and weights == pytest.approx(1 / float(tokens))


@pytest.mark.parametrize("output", ["loss", "margin", "target_logit"])
def test_the_sums_are_the_change(cache, tmp_path, output):
    task = recorded(cache)
    study = study_of(task, tmp_path)
    found = Explaind(keep=["step", "component", "query"], output=output, quadrature=Quadrature(nodes=4)).attribute(
        study
    )
    assert found.sizes["component"] == 15 and found.sizes["step"] == 5 and found.sizes["query"] == 4
    change, residual = found["change"].values, found["residual"].values
    assert abs(residual).max() < 1e-4 * abs(change).max()
    parts = (found["influence"] + found["regularisation"]).sum(["step", "component"])
    np.testing.assert_allclose(parts, found["explained"].sum("output"), rtol=1e-4, atol=1e-5)


def test_training_examples_are_charged_with_their_own_gradients(cache, tmp_path):
    """One step of SGD: −lr w_k ∇L_k(θ_0) · ∫∇f, by autograd."""
    fit = dataclasses.replace(FIT, steps=1, optimizer="sgd", lr=0.05, warmup=0, schedule="constant", weight_decay=0.0)
    task = recorded(cache, fit, architecture="gpt2", sizes=GPT2)
    start, end = task.trajectory.parameters(0), task.trajectory.parameters(1)
    ids, weights = task.trajectory.batch(0)
    study = study_of(task, tmp_path)
    found = Explaind(keep=["train", "query"], output="loss", quadrature=Quadrature(nodes=1)).attribute(study)
    network, middle = task.module, {name: (start[name] + end[name]) / 2 for name in start}

    def gradient(values, inputs):
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        out = torch.func.functional_call(network, leaves, (inputs[None],))
        return torch.autograd.grad(-out[0, 0], list(leaves.values()))  # of the summed loss of the completion

    queries = [gradient(middle, inputs) for inputs in task.corpus.test.inputs]
    influence = found["influence"].squeeze().transpose("train", "query").values
    for k, weight in zip(ids, weights, strict=True):
        own = gradient(start, task.corpus.train.inputs[k])
        for q, query in enumerate(queries):
            expected = (
                0.05 * weight * sum(float((a.double() * b.double()).sum()) for a, b in zip(own, query, strict=True))
            )
            assert influence[k, q] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    others = np.setdiff1d(np.arange(len(task.corpus.train)), ids)
    assert not influence[others].any()


def test_every_other_step_can_be_recorded(cache, tmp_path):
    task = recorded(cache, dataclasses.replace(FIT, record=2))
    found = Explaind(keep=["step"], output="loss", quadrature=Quadrature(nodes=4)).attribute(study_of(task, tmp_path))
    assert list(found["step"].values) == [0, 2, 4] and "first_moment" in found


def test_what_cannot_be_recorded_is_refused(cache):
    with pytest.raises(UserError, match=r"trainer.fit.clip=1: clipping"):
        recorded(cache, dataclasses.replace(FIT, clip=1.0))
    with pytest.raises(UserError, match="architecture 'bloom' cannot be recorded; those that can: llama"):
        recorded(cache, architecture="bloom", sizes={"hidden_size": 16, "n_layer": 2, "n_head": 2})
