"""SOURCE against dense matrices, its limit, and the derivative of a real training, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny_problem import Remembered, course, explicit_gradients, made_up, moved_a_little, stage
from torch import nn

from tdaexp import influence
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.scaled import fit_scaled
from tdaexp.curvature.segment_samples import SegmentSamples
from tdaexp.data.candidates import Candidates
from tdaexp.data.examples import Examples
from tdaexp.data.tensors import TensorExamples
from tdaexp.gradients.passes import fitted_gradients
from tdaexp.history import Moment
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.source import Source
from tdaexp.models.discovery import discovered
from tdaexp.objectives.labels import uniforms
from tdaexp.objectives.numbers import Numbers
from tdaexp.problem import Compute, Problem
from tdaexp.runtime.errors import UserError

TRAIN, ASKED, WIDTH, DECAY = 6, 2, 3, 0.2


@dataclass(frozen=True)
class Signs(Numbers):
    """Labels of noise 1 or -1, so that one draw gives the curvature of a linear model exactly."""

    def sampled(self, logits, inputs, seed, labels):
        noise = (uniforms(inputs.ids, seed, logits.shape[2]) - 0.5).sign().to(logits)
        means = logits[:, 0]
        return 0.5 * (means - (means.detach() + noise)).square().sum(1), torch.zeros(len(means), 1, dtype=torch.int64)


class Quadratic:
    """½ |X θ - y|² / N + ½ λ |θ|², and a training of it by gradient descent from 0."""

    def __init__(self, tmp_path, steps: int = 40, rate: float = 0.02) -> None:
        generator = torch.Generator().manual_seed(4)
        self.x = torch.randn(TRAIN + ASKED, WIDTH, generator=generator).double()
        self.y = torch.randn(TRAIN + ASKED, 1, generator=generator).double() * 2
        self.curvature = self.x[:TRAIN].T @ self.x[:TRAIN] / TRAIN
        self.steps, self.rate, self.cache = steps, rate, tmp_path
        self.weights = [torch.zeros(WIDTH).double()]
        for _ in range(steps):
            self.weights.append(self.after(self.weights[-1], torch.ones(TRAIN).double()))

    def after(self, theta: torch.Tensor, counts: torch.Tensor, decay: float = DECAY) -> torch.Tensor:
        """θ after a step in which each example's loss counts so often."""
        x, y = self.x[:TRAIN], self.y[:TRAIN, 0]
        return theta - self.rate * (x.T @ (counts * (x @ theta - y)) / TRAIN + decay * theta)

    def model(self, step: int) -> nn.Module:
        found = nn.Linear(WIDTH, 1, bias=False).double().requires_grad_(False)
        found.weight.copy_(self.weights[step][None])
        return found

    def problem(self, rates: float | None = None, decay: float = DECAY, kept: int | None = None) -> Problem:
        """All pairs; steps of these `rates`, the weights after every `kept` of them."""
        model = self.model(self.steps)
        examples = TensorExamples([f"e{n}" for n in range(len(self.x))], self.x, self.y)
        steps = range(kept or self.steps, self.steps + 1, kept or self.steps)
        moments = [Moment(step, 1.0, f"after {step}", lambda step=step: self.model(step)) for step in steps]
        rate = self.rate if rates is None else rates
        pairs = np.tile(np.arange(TRAIN), (ASKED, 1))
        return Problem(
            model, f"quadratic {kept}", discovered(model, lambda: model(self.x), len(self.x)), Signs(),
            examples.select(range(TRAIN)), examples.select(range(TRAIN, TRAIN + ASKED)), ["test"] * ASKED,
            Candidates(pairs, np.full(pairs.shape, np.nan)), np.zeros(pairs.shape, bool),
            Compute(torch.device("cpu"), torch.float64, 4096, 1.0), self.cache / f"{rate}-{decay}-{kept}", 0,
            history=Remembered(moments, course(model, self.steps, "sgd", decay, rate)),
        )  # fmt: skip

    def gradients(self, step: int) -> torch.Tensor:
        """∇ℓ of all examples [N + Q, D] at a step; of a query that of minus its measurement."""
        return (self.x @ self.weights[step] - self.y[:, 0])[:, None] * self.x


@pytest.fixture
def quadratic(tmp_path):
    return Quadratic(tmp_path)


def scores(problem: Problem, **keys) -> torch.Tensor:
    return torch.from_numpy(influence.scores(Source(**keys).attribute(problem)).values)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_one_segment_without_end_is_the_inverse(quadratic, decay):
    """(G + λI)⁻¹ ḡ / N, of a positive definite G."""
    assert torch.linalg.eigvalsh(quadratic.curvature)[0] > 0.05
    found = scores(quadratic.problem(1e9, decay), segments=1)
    g = quadratic.gradients(quadratic.steps)
    inverse = torch.linalg.inv(quadratic.curvature + decay * torch.eye(WIDTH).double())
    torch.testing.assert_close(found, g[TRAIN:] @ inverse @ g[:TRAIN].T / TRAIN, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_its_closed_form_on_a_quadratic(quadratic, segments):
    """With eight checkpoints, of which each of a segment's counts equally: τ = qᵀ Σ_ℓ S … S r ḡ_ℓ / N."""
    found = scores(quadratic.problem(kept=5), segments=segments, checkpoints=8)
    matrix, rates = quadratic.curvature + DECAY * torch.eye(WIDTH).double(), quadratic.rate * quadratic.steps / segments
    passed = torch.linalg.matrix_exp(-rates * matrix)
    added = torch.linalg.inv(matrix) @ (torch.eye(WIDTH).double() - passed)
    steps = np.array_split(np.arange(5, quadratic.steps + 1, 5), segments)
    query, wanted = quadratic.gradients(quadratic.steps)[TRAIN:], 0.0
    for own in reversed(steps):
        mean = torch.stack([quadratic.gradients(int(step))[:TRAIN] for step in own]).mean(0)
        wanted = wanted + query @ added @ mean.T / TRAIN
        query = query @ passed
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_more_segments_come_nearer_to_the_derivative_of_the_training(tmp_path):
    """How the measurement at the end depends on an example's count in every step, by autograd through all of them."""
    quadratic = Quadratic(tmp_path, steps=400, rate=0.01)

    def measured(counts: torch.Tensor) -> torch.Tensor:
        theta = torch.zeros(WIDTH).double()
        for _ in range(quadratic.steps):
            theta = quadratic.after(theta, counts)
        return -0.5 * (quadratic.x[TRAIN:] @ theta - quadratic.y[TRAIN:, 0]).square()

    wanted = torch.autograd.functional.jacobian(measured, torch.ones(TRAIN).double())
    problem = quadratic.problem(kept=1)
    one, many = (float((scores(problem, segments=n, checkpoints=1) - wanted).norm() / wanted.norm()) for n in (1, 8))
    assert one > 0.04 and many < 0.004


def test_momentum_counts_each_gradient_more_often(quadratic):
    plain = quadratic.problem(4 * quadratic.rate)
    heavy = quadratic.problem()
    heavy.history.went = replace(heavy.history.went, momentum=0.75)
    torch.testing.assert_close(scores(heavy, segments=1), scores(plain, segments=1), rtol=1e-12, atol=0)


@pytest.fixture
def exact(make_problem, tmp_path):
    """A language model in float64 with four checkpoints in memory, and a second stage."""
    problem = make_problem(tmp_path / "exact", dtype=torch.float64)
    return replace(problem, history=remembered(problem.loaded))


def remembered(loaded, optimizer: str = "adamw") -> Remembered:
    def at(step):
        return moved_a_little(loaded, 0.004 * step).model

    steps = (3, 6, 9, 12)
    moments = [Moment(n, 1.0, f"at {n}", lambda n=n: at(n), lambda n=n: made_up(loaded.model, n)) for n in steps]
    return Remembered(moments, course(loaded.model, 12, optimizer, 0.05, 0.02))


NAMES = ["layers.0.mlp.up", "layers.1.attn.o"]
SHORT = {"segments": 1, "checkpoints": 1, "components": NAMES}
FLOAT32 = 1e-6
"""OLMo's norms compute in it whatever the precision; relative to the largest score."""


def layer_matrices(problem, history, names, form, steps, rates):
    """S and r [D, D] of each layer, from factors of the segment's moments and matrix exponentials."""
    layers = layers_of(problem.components(names))
    moments = history.moments(steps, 0)
    samples = SegmentSamples(moments, fitted_gradients(problem, layers.map), layers, 10**6)
    states = [one.state() for one in moments]
    found = {}

    def scale(name):
        (parameter,) = layers.map.select([name]).components[0].parts[0].parameters or [
            f"{layers.map.select([name]).components[0].parts[0].module}.weight"
        ]
        second = torch.stack([one.second(parameter) for one in states]).mean(0)
        return (1 / (second.sqrt() + 1e-8)).sqrt().double()

    folder = problem.cache / f"oracle-{problem.identity}-{steps}-{form}"
    if form == "adam":
        factors = fit_scaled(samples, scale, FactorSettings(), store=folder)
    else:
        factors = fit_factors(samples, FactorSettings(), store=folder)
    tokens = np.mean([one.loss_mask[1:].sum() for one in problem.curvature_examples])
    for name in names:
        one = factors[name]
        s = scale(name).flatten() if form == "adam" else torch.ones(one.spectrum.numel()).double()
        basis = torch.kron(one.q_out, one.q_in)
        m = basis @ torch.diag(one.spectrum.flatten() / tokens + 0.05) @ basis.T
        passed = torch.linalg.matrix_exp(-rates * m)
        added = torch.linalg.solve(m, torch.eye(len(m)).double() - passed)
        found[name] = (s[:, None] * passed / s, s[:, None] * added * s)
    return found


@pytest.mark.parametrize(("form", "stages"), [("sgd", 1), ("adam", 2)])
@pytest.mark.long
def test_against_a_dense_transcription(exact, form, stages):
    problem = exact if stages == 2 else exact.after("pretrained")
    method = Source(segments=2, components=NAMES, form=form, checkpoints=2)
    found = method.attribute(problem)
    before, after = exact.after("pretrained"), problem.after("finetuned")
    cuts = [([3, 6], 6 * 0.02), ([9, 12], 6 * 0.02)]
    segments = [layer_matrices(before, exact.history, NAMES, form, steps, rates) for steps, rates in cuts]
    later = []
    if stages == 2:
        history = exact.finetuned.history
        history.went = replace(history.went, decay=dict.fromkeys(history.went.decay, 0.05))
        later = [layer_matrices(after, history, NAMES, form, [5], 5e-3)]
        found = method.attribute(problem)
    queries = explicit_gradients(after.loaded, problem.queries)
    for column, name in enumerate(found["component"].values):
        wanted = 0.0
        for place, (steps, _) in enumerate(cuts):
            q = torch.stack([row[name] for row in queries])
            for one in reversed([*segments, *later][place + 1 :]):
                q = q @ one[name][0]
            q = q @ segments[place][name][1]
            for moment in exact.history.moments(steps, 0):
                loaded = replace(exact.loaded, model=moment.load())
                rows = torch.stack([row[name] for row in explicit_gradients(loaded, problem.train)])
                wanted = wanted + (q @ rows.T).numpy() / (2 * len(problem.train))
        wanted = np.take_along_axis(wanted, problem.pairs, axis=1)
        values = found["influence"].values[..., column]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())


def test_the_form_follows_the_optimiser(exact):
    problem = exact.after("pretrained")
    by_sgd = replace(problem, history=remembered(problem.loaded, "sgd"))
    for own, form in ((problem, "adam"), (by_sgd, "sgd")):
        one, two = (Source(**SHORT, form=name).attribute(own) for name in ("auto", form))
        np.testing.assert_array_equal(one["influence"].values, two["influence"].values)


def test_summed_losses_count_by_their_positions(exact):
    """A text of twice the mean number of positions counts twice; the query's own number is a factor."""
    problem = exact.after("pretrained")
    mean, total = (Source(**SHORT, reduction=name).attribute(problem) for name in ("mean", "sum"))
    tokens = np.array([one.loss_mask[1:].sum() for one in problem.train])
    asked = np.array([one.loss_mask[1:].sum() for one in problem.queries])
    wanted = influence.scores(mean).values * asked[:, None] * tokens[problem.pairs] / tokens.mean()
    np.testing.assert_allclose(influence.scores(total).values, wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())


def test_of_a_long_training_it_orders_as_ekfac_does(exact):
    """One checkpoint, the model itself, and rates without end: λ is the weight decay of the mean over positions."""
    problem = exact.after("pretrained")
    end = Moment(12, 1.0, "end", lambda: problem.model)
    tokens = np.mean([one.loss_mask[1:].sum() for one in problem.train])
    problem = replace(problem, history=Remembered([end], course(problem.model, 12, "sgd", 0.05, 1e9)))
    found = Source(segments=1, components=NAMES).attribute(problem)["influence"].values
    wanted = EKFAC(damping=0.05 * float(tokens), components=NAMES).attribute(problem)["influence"].values
    np.testing.assert_allclose(found * len(problem.train) / tokens, wanted, rtol=1e-7, atol=1e-12)


def test_checkpoints_without_state_say_what_to_do(exact):
    bare = [replace(one, state=Moment(0, 0.0, "", lambda: None).state) for one in exact.history.kept]
    problem = replace(exact.after("pretrained"), history=Remembered(bare, exact.history.went))
    with pytest.raises(UserError, match=r"left no state of its optimiser; train it with trainer.fit.keep=state"):
        Source(segments=2).attribute(problem)
    assert np.isfinite(Source(**SHORT, form="sgd").attribute(problem)["influence"].values).all()


def test_a_model_without_a_history(exact):
    with pytest.raises(UserError, match=r"left nothing on its way that is known here"):
        Source().attribute(replace(exact, history=None))
    nothing = replace(exact, finetuned=replace(exact.finetuned, history=None))
    with pytest.raises(UserError, match=r"left nothing on its way that is known here"):
        Source(segments=1).attribute(nothing)


def test_a_second_stage_without_examples(exact):
    blind = replace(exact, finetuned=stage(exact.finetuned.loaded, Examples([])))
    with pytest.raises(UserError, match=r"method=source: no fine-tuning example is known.*finetune_path=FILE"):
        Source(segments=1).attribute(blind)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"form": "adamw"}, r"method.form: unknown form 'adamw'.*adam"),
        ({"segments": 0}, r"method.segments=0: must be at least 1"),
        ({"checkpoints": 0}, r"method.checkpoints=0: must be at least 1"),
        ({"boundaries": [20, 10]}, r"method.boundaries=\[20, 10\]: 10 stands behind 20"),
        ({"part": "none"}, r"method.part: unknown part 'none'"),
    ],
)
def test_impossible_settings(keys, message):
    with pytest.raises(UserError, match=message):
        Source(**keys)


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({}, "source"),
        ({"form": "sgd", "segments": 1}, "source (sgd, segments 1)"),
        ({"boundaries": [5, 10], "part": "mlp"}, "source (cut at 5, 10, mlp)"),
        ({"checkpoints": 1, "finetuned_segments": 2}, "source (checkpoints 1, fine-tuning segments 2)"),
    ],
)
def test_labels_tell_runs_apart(keys, label):
    assert Source(**keys).label == label


def test_it_asks_for_checkpoints_with_state(compose):
    assert compose("method=source").wants_checkpoints and compose("method=source").wants_state
    assert not compose("method=source", "method.form=sgd").wants_state
    assert not compose("method=tracin").wants_state
