"""Multi-stage influence against dense inverses, single-stage influence and cross-model dot products, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import FINETUNE, TRAIN, explicit_gradients, moved_a_little, stage, tokens, with_type

from tdaexp import influence
from tdaexp.data.examples import Examples
from tdaexp.methods.cg import CG
from tdaexp.methods.dot import Dot
from tdaexp.methods.ekfac import EKFAC
from tdaexp.methods.multistage import MultiStage
from tdaexp.methods.repsim import RepSim
from tdaexp.methods.trak import TRAK
from tdaexp.runtime.errors import UserError


@pytest.fixture
def exact(make_problem, tmp_path):
    """A problem of two stages in float64."""
    return make_problem(tmp_path / "exact", dtype=torch.float64)


def values(dataset):
    """Scores by component [Q, C, K] of the pairs that exist."""
    return dataset["influence"].values


def test_two_equal_stages_without_the_second_inverse_are_one_stage(exact):
    """λ_ft → ∞ makes the second inverse I / λ_ft."""
    same = dataclasses.replace(exact, finetuned=stage(exact.loaded, exact.train))
    damping, huge = 1e-3, 1e9
    one = EKFAC(damping=damping).attribute(exact.after("pretrained"))
    two = MultiStage(damping=damping, finetuned_damping=huge).attribute(same)
    np.testing.assert_allclose(huge * values(two), values(one), rtol=1e-6, atol=1e-9 * np.nanmax(np.abs(values(one))))
    assert two["component"].values.tolist() == one["component"].values.tolist()


def test_without_curvature_it_is_the_dot_product_across_the_models(exact):
    found = MultiStage(mode="identity").attribute(exact)
    before = explicit_gradients(exact.loaded, exact.train)
    after = explicit_gradients(exact.finetuned.loaded, exact.queries)
    for column, name in enumerate(found["component"].values):
        wanted = [[float(q[name] @ before[c][name]) for c in row] for q, row in zip(after, exact.pairs, strict=True)]
        np.testing.assert_allclose(values(found)[..., column], wanted, rtol=1e-9)
    assert values(found).std() > 0


@pytest.mark.parametrize("modes", [("ekfac", "ekfac"), ("ekfac", "diagonal"), ("identity", "kfac")])
def test_both_inverses_in_their_order_against_a_dense_solve(exact, modes):
    """(G_ft + λI)⁻¹ acts on the query's gradient first, the one before fine-tuning second; they do not commute."""
    method = MultiStage(mode=modes[0], damping=1e-2, finetuned_mode=modes[1], finetuned_damping=3e-2)
    names = ["layers.0.mlp.up", "layers.1.attn.o"]
    method.components = names
    found = method.attribute(exact)
    before = explicit_gradients(exact.loaded, exact.train)
    after = explicit_gradients(exact.finetuned.loaded, exact.queries)
    stages = [(exact.after("pretrained"), method.pretrained), (exact.after("finetuned"), method.finetuned)]
    for column, name in enumerate(found["component"].values):
        first, second = (dense(settings, problem, name, names) for problem, settings in stages)
        ready = [first @ (second @ gradient[name].numpy()) for gradient in after]
        wanted = [[q @ before[c][name].numpy() for c in row] for q, row in zip(ready, exact.pairs, strict=True)]
        np.testing.assert_allclose(values(found)[..., column], wanted, rtol=1e-7)


def dense(settings, problem, name, names):
    """(G + λI)⁻¹ of one layer as an explicit matrix over the gradient's entries, by numpy's inverse."""
    fitted = EKFAC(mode=settings.mode, components=names)
    factors = fitted.fit(problem, fitted.layers(problem))[name]
    if factors.spectrum is None:
        return np.eye(int(np.prod(problem.components([name]).components[0].matrix)))
    spectrum = np.diag(factors.spectrum.numpy().ravel())
    basis = np.eye(len(spectrum))
    if factors.q_out is not None:
        basis = np.kron(factors.q_out.numpy(), factors.q_in.numpy())
    return np.linalg.inv(basis @ spectrum @ basis.T + settings.damping * np.eye(len(spectrum)))


@pytest.mark.long
def test_the_second_stage_counts(exact):
    """Other fine-tuning examples give another curvature; another fine-tuned model other gradients."""
    method = MultiStage(damping=1e-3)
    usual = values(method.attribute(exact))
    second = exact.finetuned
    fewer = dataclasses.replace(exact, finetuned=stage(second.loaded, Examples(second.examples.items[:2])))
    further = dataclasses.replace(exact, finetuned=stage(moved_a_little(exact.loaded, 0.04), second.examples))
    further.finetuned.loaded.__dict__["fingerprint"] = "further"
    for other in (fewer, further):
        assert np.abs(values(method.attribute(other)) - usual).max() > 1e-3 * np.abs(usual).max()


def test_each_stage_has_its_own_damping():
    method = MultiStage(damping=1e-4)
    assert (method.pretrained.damping, method.finetuned.damping) == (1e-4, 1e-4)
    method = MultiStage(damping=1e-4, finetuned_damping=1e-6)
    assert (method.pretrained.damping, method.finetuned.damping) == (1e-4, 1e-6)
    method = MultiStage(damping=1e-4, finetuned_relative_damping=0.5)
    assert (method.finetuned.damping, method.finetuned.relative_damping) == (None, 0.5)
    assert MultiStage(mode="kfac", finetuned_mode="identity").finetuned.mode == "identity"


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({}, "multistage"),
        ({"mode": "identity"}, "dot across stages"),
        ({"mode": "identity", "part": "mlp", "query_rank": 4}, "dot across stages (mlp, rank 4)"),
        ({"relative_damping": 0.5}, "multistage (λ 0.5 × mean)"),
        ({"measurement": "logit_margin", "reduction": "sum"}, "multistage (logit_margin, sum)"),
        ({"damping": 1e-6}, "multistage (λ 1e-06)"),
        ({"damping": 1e-6, "finetuned_relative_damping": 0.1, "part": "mlp"}, "multistage (λ 1e-06/λ 0.1 × mean, mlp)"),
        ({"components": ["layers.0.attn.q"], "finetuned_mode": "kfac"}, "multistage (ekfac/kfac, 1 components)"),
    ],
)
def test_labels_tell_runs_apart(keys, label):
    assert MultiStage(**keys).label == label


def test_one_stage_is_refused(exact):
    with pytest.raises(UserError, match=r"one training stage; .*experiment=toy_msif method=multistage"):
        MultiStage().attribute(dataclasses.replace(exact, finetuned=None))


def test_a_second_stage_without_examples_has_no_curvature(exact):
    blind = dataclasses.replace(exact, finetuned=stage(exact.finetuned.loaded, Examples([])))
    with pytest.raises(UserError, match=r"no fine-tuning example is known.*finetuned_mode=identity"):
        MultiStage().attribute(blind)
    assert np.isfinite(values(MultiStage(finetuned_mode="identity").attribute(blind))).all()


@pytest.mark.parametrize("method", [EKFAC(), CG(), TRAK(dimensions=4)], ids=["ekfac", "cg", "trak"])
def test_one_stage_without_its_examples_has_no_curvature(method, exact):
    blind = dataclasses.replace(exact, finetuned=stage(exact.finetuned.loaded, Examples([])))
    with pytest.raises(UserError, match=r"no fine-tuning example is known.*stage=pretrained"):
        method.attribute(blind.after("finetuned"))
    assert np.isfinite(values(Dot().attribute(blind.after("finetuned")))).all()


def test_after_a_stage_a_problem_has_its_model_and_its_curvature(exact):
    before, after = exact.after("pretrained"), exact.after("finetuned")
    assert before.loaded is exact.loaded and before.model is exact.model and before.curvature_examples is exact.train
    assert after.model is after.loaded.model is exact.finetuned.loaded.model
    assert after.loaded is exact.finetuned.loaded and after.curvature_examples is exact.finetuned.examples
    assert before.finetuned is None and after.finetuned is None and after.stores is exact.stores
    assert after.after("pretrained") is after
    assert before.store("x", by=EKFAC) != after.store("x", by=EKFAC)


def test_representations_come_from_their_own_stage(exact):
    found = influence.scores(RepSim().attribute(exact)).values
    queries = RepSim().states(exact.after("finetuned"), exact.queries)
    train = RepSim().states(exact.after("pretrained"), exact.train)
    np.testing.assert_allclose(found, np.einsum("qd,qcd->qc", queries, train[exact.pairs]))
    same = dataclasses.replace(exact, finetuned=None)
    assert np.abs(influence.scores(RepSim().attribute(same)).values - found).max() > 1e-3


def test_the_tiny_second_stage_is_another_model(exact):
    assert len(exact.finetuned.examples) == len(FINETUNE) and len(exact.train) == len(TRAIN)
    one, two = exact.loaded.model.state_dict(), exact.finetuned.loaded.model.state_dict()
    assert all(not torch.equal(one[name], two[name]) for name in one)
    assert tokens(TRAIN, with_type(exact.loaded, torch.float64)).fingerprint() == exact.train.fingerprint()
