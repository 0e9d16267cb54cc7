"""Metagradients of a language model's training: the loss of its tokens, tied embeddings, clipping, and by command."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gradient_oracle import build_model, make_examples
from recorded_problem import CPU
from torch.func import functional_call

from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.methods.magic import Magic
from tdaexp.models.components import component_map
from tdaexp.models.plain import plain_kernels
from tdaexp.objectives.tokens import NextToken
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError
from tdaexp.training.bank import Recipe
from tdaexp.training.batches import step_batch
from tdaexp.training.retrain import batches_without, retrain
from tdaexp.training.settings import FitSettings
from tdaexp.training.text_problem import Texts

SETTINGS = FitSettings(steps=7, batch_size=4, lr=0.02, warmup=0, clip=1.0, betas=[0.8, 0.95], eps_root=1e-6)
SEED = 3


def text_problem(variant: str, cache, settings: FitSettings = SETTINGS) -> Problem:
    """Six texts, of which a stream's batches hold some in two neighbouring steps, and two queries."""
    train, queries = make_examples(0, 6), make_examples(1, 2, prefix="q")
    recipe = Recipe("text", settings, SEED, lambda _: Texts(build_model(variant), train), train.ids, ())
    ended = recipe.start(None)
    retrain(ended, settings, batches_without(ended, settings, SEED, np.ones(6, bool)))
    pairs = np.tile(np.arange(6), (2, 1))
    return Problem(
        model=ended.module,
        identity=variant,
        map=component_map(ended.module),
        objective=NextToken(),
        train=train,
        queries=queries,
        query_set=["test"] * 2,
        candidates=Candidates(pairs, np.full(pairs.shape, np.nan)),
        truth=np.zeros((2, 6), bool),
        compute=Compute(CPU, torch.float64, 16, 1.0),
        cache=cache,
        seed=0,
        recipe=lambda: recipe,
    )


def token_losses(model, named, examples: Examples) -> torch.Tensor:
    """Summed loss of each text [B], one text at a time."""
    found = []
    for one in examples:
        tokens, counted = torch.from_numpy(one.tokens), torch.from_numpy(one.loss_mask[1:])
        logits = functional_call(model, named, kwargs={"input_ids": tokens[None], "use_cache": False}).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        found.append((losses * counted).sum())
    return torch.stack(found)


def unrolled_texts(variant: str, problem: Problem, settings: FitSettings) -> np.ndarray:
    """Scores [Q, N] by autograd through the whole training."""
    model = copy.deepcopy(build_model(variant)).requires_grad_(False)
    weights = torch.ones(6, dtype=torch.float64, requires_grad=True)
    named = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in named.items()}
    second = dict(first)
    for step in range(settings.steps):
        ids = step_batch(step, kind="stream", seed=SEED, examples=6, batch_size=settings.batch_size)
        batch = problem.train.select(ids)
        count = sum(int(one.loss_mask[1:].sum()) for one in batch)
        loss = (token_losses(model, named, batch) * weights[ids]).sum() / count
        slopes = torch.autograd.grad(loss, list(named.values()), create_graph=True)
        norm = torch.sqrt(sum(slope.square().sum() for slope in slopes))
        slopes = [slope * torch.clamp(settings.clip / (norm + 1e-6), max=1.0) for slope in slopes]
        rate = settings.lr * 0.5 * (1 + np.cos(np.pi * step / settings.steps))
        for name, slope in zip(list(named), slopes, strict=True):
            first[name] = 0.8 * first[name] + 0.2 * slope
            second[name] = 0.95 * second[name] + 0.05 * slope**2
            root = torch.sqrt(second[name] / (1 - 0.95 ** (step + 1)) + settings.eps_root) + settings.eps
            decay = settings.weight_decay if named[name].ndim > 1 else 0.0
            moved = first[name] / (1 - 0.8 ** (step + 1)) / root
            named[name] = named[name] * (1 - rate * decay) - rate * moved
    counts = torch.tensor([int(one.loss_mask[1:].sum()) for one in problem.queries])
    ends = -token_losses(model, named, problem.queries) / counts
    return torch.stack([torch.autograd.grad(end, weights, retain_graph=True)[0] for end in ends]).numpy()


@pytest.mark.parametrize("variant", ["gpt2-tied", "gpt_neox-untied"])
def test_scores_are_those_of_autograd_through_the_whole_training(variant, tmp_path):
    """Architectures that compute in float64 what they are given so."""
    problem = text_problem(variant, tmp_path)
    found = Magic(trials=0).attribute(problem)["influence"].sum("component").values
    with plain_kernels():  # the fused one has no second derivative
        wanted = unrolled_texts(variant, problem, SETTINGS)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


def test_a_model_that_drops_out_is_refused(tmp_path):
    """One that states a dropout and is trained here, as GPT-2 above, is trained without."""
    problem = text_problem("gpt2-tied", tmp_path)
    assert problem.model.config.attn_pdrop > 0
    problem.model.train()
    with pytest.raises(UserError, match=r"is dropout with p=0\.1"):
        Magic().attribute(problem)
