"""Method `ekfac`: the dot product in its limits, what is fitted again and what is not, its keys, its errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_problem import TRAIN, explicit_gradients

from tdaexp import influence
from tdaexp.data.records import Record
from tdaexp.methods.ekfac import EKFAC
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError


@pytest.fixture(scope="module")
def wide(make_problem, tmp_path_factory):
    """A problem in float64; its cache is common, so that what several tests look at is fitted once."""
    return make_problem(tmp_path_factory.mktemp("cache"), dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_identity_is_the_dot_product(reduction, wide, compose):
    found = compose("method=ekfac", "method.mode=identity", f"method.reduction={reduction}").attribute(wide)
    names = list(found["component"].values)
    assert "embed" not in names and len(names) == 14
    wanted = compose("method=dot", f"method.components=[{','.join(names)}]", f"method.reduction={reduction}")
    np.testing.assert_allclose(found["influence"], wanted.attribute(wide)["influence"], rtol=1e-10, atol=1e-12)


def test_much_damping_ranks_as_the_dot_product(wide, compose):
    found = influence.scores(compose("method=ekfac", "method.damping=1e9").attribute(wide)).values
    wanted = influence.scores(compose("method=ekfac", "method.mode=identity").attribute(wide)).values
    assert (np.argsort(found, 1) == np.argsort(wanted, 1)).all()
    np.testing.assert_allclose(found * 1e9, wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", ["ekfac", "kfac", "diagonal"])
def test_modes_differ_and_little_damping_is_far_from_the_dot_product(mode, wide, compose):
    plain = influence.scores(compose("method=ekfac", "method.mode=identity").attribute(wide)).values.ravel()
    found = influence.scores(compose("method=ekfac", f"method.mode={mode}").attribute(wide)).values.ravel()
    assert 0.1 < np.corrcoef(found, plain)[0, 1] < 0.995


def test_a_measurement_is_what_is_explained(wide, compose):
    """The gradient of the answer's whole log-probability, against the mean loss of the training example."""
    method = compose("method=ekfac", "method.mode=identity", "method.measurement=answer_log_probability")
    scores = influence.scores(method.attribute(wide)).values
    names = list(method.attribute(wide)["component"].values)
    left = explicit_gradients(wide.loaded, wide.queries, "sum")
    right = explicit_gradients(wide.loaded, wide.train, "mean")
    for (q, c), t in np.ndenumerate(wide.pairs):
        wanted = sum(float(left[q][name] @ right[t][name]) for name in names)
        np.testing.assert_allclose(scores[q, c], wanted, rtol=1e-8)


def test_a_training_example_that_is_there_twice_helps_its_query_most(make_problem, compose, tmp_path):
    twice = dataclasses.replace(TRAIN[3], id="again")
    copy = Record("q", TRAIN[3].prompt, TRAIN[3].completion, ("t3", "again"))
    problem = make_problem(tmp_path, train=[*TRAIN, twice], queries={"copy": [copy]}, candidates=13)
    (scores,) = influence.scores(compose("method=ekfac").attribute(problem)).values
    (truth,) = problem.truth
    assert scores[truth].min() > 0 and scores[truth].min() > scores[~truth].max()
    np.testing.assert_allclose(*scores[truth], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("method", ["ekfac", "logra"])
def test_random_signs_whatever_the_batches(make_problem, compose, tmp_path, method):
    """Each example's are its own, whatever stands beside it; and not what drawn labels give."""
    keys = (f"method={method}", "method.fisher=signs")
    one, all_at_once = (
        compose(*keys).attribute(make_problem(tmp_path / str(tokens), tokens_per_batch=tokens))["influence"].values
        for tokens in (1, 100_000)
    )
    assert np.abs(one - all_at_once).max() < 1e-4 * np.abs(one).max()  # float32
    drawn = compose(keys[0]).attribute(make_problem(tmp_path / "1", tokens_per_batch=1))["influence"].values
    assert np.abs(one - drawn).max() > 1e-3 * np.abs(drawn).max()


def test_the_mlp_alone(wide, compose):
    found = compose("method=ekfac_mlp").attribute(wide)
    assert list(found["component"].values) == [f"layers.{k}.mlp.{p}" for k in (0, 1) for p in ("gate", "up", "down")]
    whole = compose("method=ekfac").attribute(wide).sel(component=found["component"].values)
    np.testing.assert_allclose(found["influence"], whole["influence"], rtol=1e-8, atol=1e-10)


@pytest.mark.long
def test_kept_gradients_and_exact_scores_agree(make_problem, compose, tmp_path):
    problem = make_problem(tmp_path / "cache")
    exact = influence.scores(compose("method=ekfac").attribute(problem)).values
    kept = influence.scores(compose("method=ekfac", "method.keep_gb=0.1").attribute(problem)).values
    assert np.abs(kept - exact).max() < 0.01 * np.abs(exact).max()


class Writes:
    """Names of the stores that were written to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stores: list[str] = []
        real = BlockStore.write

        def write(store, block, values):
            self.stores.append(store.path.name if store.path.parent.name != "influence" else "influence")
            real(store, block, values)

        patch.setattr(BlockStore, "write", write)

    def since(self) -> set[str]:
        found, self.stores = set(self.stores), []
        return found


@pytest.mark.long
def test_what_is_fitted_again(make_problem, compose, tmp_path, monkeypatch):
    """Damping, measurement and queries leave the factors alone; seed, data and partitions do not."""
    writes = Writes(monkeypatch)
    everything = {"covariance", "eigen", "lambda", "influence"}
    few = "method.components=[layers.0.attn.q,layers.1.mlp.up]"

    def run(*overrides, **problem):
        compose("method=ekfac", few, *overrides).attribute(make_problem(tmp_path, **problem))
        return writes.since()

    assert run() == everything
    assert run() == set()
    assert run("method.damping=0.5") == {"influence"}
    assert run("method.measurement=logit_margin") == {"influence"}
    assert run("method.mode=kfac") == {"influence"}
    assert run("method.mode=diagonal") == {"diagonal", "influence"}
    assert run(queries={"one": [Record("x", "Where was person 3 born?", "In Quito.", ("t3",))]}) == {"influence"}
    assert run("method.seed=1") == everything
    assert run("method.partitions=2") == everything
    assert run(train=TRAIN[:-1], queries={"one": [Record("x", "Where?", "In Quito.", ("t3",))]}) == everything
    assert run(dtype=torch.float64) == everything


def test_the_seconds_of_a_fit_count(make_problem, compose, tmp_path):
    problem = make_problem(tmp_path)
    compose("method=ekfac").attribute(problem)
    cost = problem.split_cost({"scoring": 100.0})
    assert 0 < cost["overhead"] < 100 and 0 < cost["gradients"] < 100
    rest = 100 - cost["overhead"] - cost["gradients"]
    assert rest - 0.5 < cost["scoring"] <= rest  # a little went into waiting for locks


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.mode=ekfc", "method.mode: unknown mode 'ekfc'; did you mean 'ekfac'"),
        ("method.part=mpl", "method.part: unknown part 'mpl'; did you mean 'mlp'"),
        ("method.measurement=logit_margins", "method.measurement: .* did you mean 'logit_margin'"),
        ("method.reduction=total", "method.reduction"),
        ("method.damping=-1", "not negative"),
        ("method.query_rank=0", "method.query_rank=0"),
        ("method.keep_gb=-1", "method.keep_gb"),
        ("method.saves=0", "method.saves=0"),
    ],
)
def test_choices_that_do_not_exist(override, words, compose):
    with pytest.raises(UserError, match=words):
        compose("method=ekfac", override)


def test_errors_of_a_run(wide, compose):
    with pytest.raises(UserError, match=r"without a factor rule: embed"):
        compose("method=ekfac", "method.strict=true", "method.components=[embed,layers.0.mlp.up]").attribute(wide)
    with pytest.raises(UserError, match=r"eigenvalues are zero to rounding"):
        compose("method=ekfac", "method.mode=kfac", "method.damping=0").attribute(wide)
    with pytest.raises(UserError, match=r"takes .* GB; set method.keep_gb="):
        compose("method=ekfac", "method.keep_gb=1e-6").attribute(wide)


@pytest.mark.parametrize(
    ("keys", "label"),
    [
        ({}, "ekfac"),
        ({"relative_damping": 1.0}, "ekfac (λ 1 × mean)"),
        ({"damping": 1e-4, "relative_damping": 1.0}, "ekfac (λ 0.0001)"),
        ({"mode": "identity", "relative_damping": 1.0}, "ekfac (identity)"),
        ({"query_rank": 8, "part": "mlp"}, "ekfac (mlp, rank 8)"),
        ({"measurement": "logit_margin", "reduction": "sum"}, "ekfac (logit_margin, sum)"),
    ],
)
def test_labels_tell_what_is_not_usual(keys, label):
    assert EKFAC(**keys).label == label


def test_the_answer_says_how_many_parameters_the_model_has(problem, compose):
    found = compose("method=ekfac").attribute(problem)
    assert found.attrs["parameters"] == problem.components().sizes.sum() > found["size"].sum()


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 5])
def test_blocks_of_layers_give_the_same_scores_and_hold_less(count, wide, compose, tmp_path, monkeypatch):
    from tdaexp.curvature.score import Scoring

    wide, held = dataclasses.replace(wide, cache=tmp_path), []
    usual = Scoring.held_bytes
    monkeypatch.setattr(Scoring, "held_bytes", lambda self: held.append(usual(self)) or held[-1])
    whole = compose("method=ekfac").attribute(wide)
    (everything,), held[:] = [each[0] for each in held], []  # the same for every query
    found = compose("method=ekfac", f"method.partitions={count}").attribute(wide)
    assert list(found["component"].values) == list(whole["component"].values)
    np.testing.assert_allclose(found["influence"], whole["influence"], rtol=1e-9, atol=1e-12)
    blocks = [each[0] for each in held]
    assert len(blocks) == count and sum(blocks) == everything and max(blocks) < 1.6 * everything / count
