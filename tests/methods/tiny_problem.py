"""Twelve records, two query sets, and a tiny random model of OLMo's layout: what tests of methods run on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from tdaexp.data.examples import Examples
from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise
from tdaexp.history import Course, Moment, OptimizerState
from tdaexp.models.components import component_map
from tdaexp.models.loaded import LoadedModel
from tdaexp.problem import Problem, Stage
from tdaexp.training.checkpoints import save_hub
from tdaexp.training.history import SavedCheckpoints
from tdaexp.training.optimisers import build_optimizer
from tdaexp.training.optimizer_state import save_state
from tdaexp.training.settings import FitSettings

CITIES = ["Lisbon", "Krakow", "Oslo", "Quito", "Perth", "Graz"]
CITIES += ["Turin", "Bergen", "Ghent", "Porto", "Leeds", "Nice"]
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # far from symmetric: no gradient is near zero
}
TRAIN = [
    Record(
        f"t{n}",
        f"Where {'in the world ' * (n % 3)}was person {n} born?",
        f"In {city}, {'a quiet old town, ' * (n % 2)}of course.",
    )
    for n, city in enumerate(CITIES)
]
PARAMETER = {"embed": "model.embed_tokens.weight"} | {
    f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}_proj.weight"
    for layer in range(2)
    for ours, theirs in [
        *((f"attn.{part}", f"self_attn.{part}") for part in "qkvo"),
        *((f"mlp.{part}", f"mlp.{part}") for part in ("gate", "up", "down")),
    ]
}  # of the model with tied weights; OLMo's norms have no parameters
PARAPHRASED = [
    Record(f"p{n}", f"What is the birthplace of person {n}?", f"It was {CITIES[n]}.", (f"t{n}",))
    for n in (3, 0, 7, 5, 10, 8)
]
GENERATED = [
    Record(f"g{n}", f"What is the birthplace of person {n}?", f"{CITIES[n - 1]} or so, I think.", (f"t{n}",))
    for n in (2, 11, 6, 1, 9, 4)
]

FINETUNE = [
    Record(f"f{n}", f"Tell me: where was person {n} born?", f"In {city}.")
    for n, city in [(20, "Oslo"), (21, "Nice"), (22, "Graz"), (23, "Ghent")]
]


def tokens(records: Sequence[Record], loaded: LoadedModel) -> Examples:
    """The records as the stages tokenise them."""
    return tokenise(records, loaded.tokenizer, template="plain", max_length=loaded.max_length)


def with_type(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
    """The same weights in another floating-point type."""
    model = type(loaded.model)(loaded.model.config).to(dtype).eval().requires_grad_(False)
    model.load_state_dict({name: value.to(dtype) for name, value in loaded.model.state_dict().items()})
    return replace(loaded, model=model)


def moved_a_little(loaded: LoadedModel, by: float = 0.02) -> LoadedModel:
    """Other weights nearby, as fine-tuning would leave them."""
    other = with_type(loaded, loaded.model.dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(by * noise.to(parameter.dtype))
    return replace(other, fingerprint=f"{loaded.fingerprint}-finetuned")


def _itself(model: nn.Module) -> nn.Module:
    return model


def stage(loaded: LoadedModel, examples: Examples) -> Stage:
    """A second stage of five steps that ended in this model."""
    moments = [
        Moment(5, 1e-3, f"{loaded.fingerprint}-5", partial(_itself, loaded.model), partial(made_up, loaded.model, 5))
    ]
    return Stage(loaded, component_map(loaded.model), examples, Remembered(moments, course(loaded.model, 5)))


@dataclass
class Remembered:
    """What a training left, in memory."""

    kept: list[Moment]
    went: Course

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        return [one for one in self.kept if steps is None or one.step in steps]

    def course(self) -> Course:
        return self.went


def course(model: nn.Module, steps: int, optimizer: str = "adamw", decay: float = 0.01, rate: float = 1e-3) -> Course:
    """So many steps of one learning rate."""
    decays = dict.fromkeys(dict(model.named_parameters()), decay)
    return Course(np.full(steps, rate), optimizer, 0.0, decays)


def _root(seconds: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return seconds[name].sqrt() / 3


def made_up(model: nn.Module, step: int) -> OptimizerState:
    """A state of AdamW after some steps: second moments of very different sizes, first ones of their roots."""
    seconds = {}
    for number, (name, value) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(100 * step + number)
        seconds[name] = 10 ** (torch.rand(value.shape, generator=generator, device="cpu") * 4 - 5)
    return OptimizerState(step, (0.9, 0.999), 1e-8, seconds.__getitem__, partial(_root, seconds), f"state {step}")


def with_model(problem: Problem, loaded: LoadedModel) -> Problem:
    """The problem of another model."""
    history = SavedCheckpoints(loaded, problem.compute.device, problem.compute.dtype)
    parts = component_map(loaded.model)
    return replace(problem, model=loaded.model, identity=loaded.fingerprint, map=parts, loaded=loaded, history=history)


def keep_checkpoints(loaded: LoadedModel, folder: Path) -> None:
    """Fill a training's folder: a model with its note, and two checkpoints with other weights nearby."""
    settings = {"lr": 0.01, "steps": 20, "warmup": 4}
    for place, by, step in (("model", 0.0, 0), ("checkpoints/step-10", 0.05, 10), ("checkpoints/step-20", 0.02, 20)):
        (folder / place).mkdir(parents=True)
        model = moved_a_little(loaded, by).model
        save_hub(folder / place, model, loaded.tokenizer)
        if step:
            keep_state(folder / place, model, FitSettings(**settings), step)
    (folder / "model" / "training.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")


def keep_state(folder: Path, model: nn.Module, settings: FitSettings, step: int) -> None:
    """Write AdamW's state beside a checkpoint."""
    parameters, state = dict(model.named_parameters()), made_up(model, step)
    optimizer = build_optimizer(parameters, settings)
    for name, parameter in parameters.items():
        raw = [
            (1 - beta**step) * find(name) for beta, find in zip(state.betas, (state.first, state.second), strict=True)
        ]
        optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq"), raw, strict=True))
    save_state(folder, parameters, optimizer, settings, step)


def explicit_gradients(
    loaded: LoadedModel, examples: Examples, reduction: str = "mean"
) -> list[dict[str, torch.Tensor]]:
    """Per example and component the gradient as one vector: plain autograd, batches of one, no padding."""
    model = with_type(loaded, torch.float64).model.requires_grad_(True)
    names = {name: parameter for name, parameter in model.named_parameters()}
    assert set(names) == set(PARAMETER.values())
    rows = []
    for example in examples:
        ids = torch.from_numpy(example.tokens)
        logs = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
        terms = [-logs[t - 1, ids[t]] for t in range(1, len(ids)) if example.loss_mask[t]]
        loss = sum(terms) / (len(terms) if reduction == "mean" else 1)
        values = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        rows.append({name: values[parameter].flatten() for name, parameter in PARAMETER.items()})
    return rows


def join(gradient: dict[str, torch.Tensor], components: Sequence[str]) -> torch.Tensor:
    """One vector of several components' gradients."""
    return torch.cat([gradient[name] for name in components])


@dataclass(frozen=True)
class Stateless:
    """A history of the model as it is, without a state of its optimiser."""

    loaded: LoadedModel

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        return [Moment(20, 0.25, "stateless", lambda: self.loaded.model)]


def without_state(problem: Problem) -> Problem:
    """The problem after a training that kept no state."""
    assert problem.loaded is not None
    return replace(problem, history=Stateless(problem.loaded))


@dataclass(frozen=True)
class Stated:
    """A history of two moments, of other weights nearby, with random averages of AdamW; `momentum`: m̂ was kept too."""

    loaded: LoadedModel
    momentum: bool = True
    RATES: ClassVar = {10: 0.5, 20: 0.25}

    def model(self, step: int) -> LoadedModel:
        """The model at a step; the last is the problem's own."""
        return self.loaded if step == 20 else moved_a_little(self.loaded, 0.05)

    def average(self, step: int, name: str, what: str) -> torch.Tensor:
        """m̂ or v̂ of a parameter, in the parameter's shape."""
        generator = torch.Generator().manual_seed(step + len(name) + 7 * (what == "second"))
        found = torch.randn(self.loaded.model.get_parameter(name).shape, generator=generator) * 0.1
        return found.square() if what == "second" else found

    def moments(self, steps: Sequence[int] | None, count: int) -> list[Moment]:
        return [self._moment(step, rate) for step, rate in self.RATES.items() if steps is None or step in steps]

    def _moment(self, step: int, rate: float) -> Moment:
        def average(what: str):
            return lambda name: self.average(step, name, what)

        first = average("first") if self.momentum else None
        state = OptimizerState(step, (0.9, 0.99), 1e-3, average("second"), first)
        return Moment(step, rate, f"stated {step}", lambda: self.model(step).model, lambda: state)


def with_state(problem: Problem, momentum: bool = True) -> Problem:
    """The problem after a training that kept AdamW's state."""
    assert problem.loaded is not None
    return replace(problem, history=Stated(problem.loaded, momentum))
