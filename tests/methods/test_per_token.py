"""Key `per_token` of `ekfac` and `multistage`: which pairs, what their shares sum to, what is computed again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tdaexp import influence
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.runtime.errors import UserError

KEYS = [
    ("method=ekfac", "method.damping=1e-2"),
    ("method=ekfac", "method.mode=diagonal", "method.query_rank=2", "method.reduction=sum"),
    ("method=multistage", "method.damping=1e-2", "method.finetuned_damping=3e-2"),
    ("method=multistage", "method.mode=identity", "method.measurement=logit_margin"),
]


@pytest.mark.parametrize("keys", KEYS, ids=" ".join)
def test_shares_of_the_best_candidates_sum_to_their_scores(keys, make_problem, compose, tmp_path):
    problem = make_problem(tmp_path, dtype=torch.float64)
    found = compose(*keys, "method.per_token=2").attribute(problem)
    scores = influence.scores(found).values
    np.testing.assert_array_equal(found["best"], np.argsort(-scores, axis=1)[:, :2])
    wanted = np.take_along_axis(scores, found["best"].values, axis=1)
    for side in ("train_share", "query_share"):
        np.testing.assert_allclose(np.nansum(found[side], axis=2), wanted, rtol=1e-9)
    plain = compose(*keys).attribute(problem)
    assert "train_share" not in plain and "train_token" not in plain.coords
    np.testing.assert_array_equal(plain["influence"], found["influence"])


def test_tokens_are_those_of_the_pairs(problem, compose, tmp_path):
    found = compose("method=ekfac", "method.per_token=9").attribute(problem)  # four candidates are all there are
    influence.save(found, tmp_path / "store")
    found = influence.load(tmp_path / "store")
    assert found["best"].shape == problem.pairs.shape
    for (row, rank), column in np.ndenumerate(found["best"].values):
        for side, example in (("train", problem.train[problem.pairs[row, column]]), ("query", problem.queries[row])):
            tokens = found[f"{side}_token"].values[(row, rank) if side == "train" else row]
            assert "".join(tokens) == problem.loaded.tokenizer.decode(example.tokens)
            assert np.isfinite(found[f"{side}_share"].values[row, rank]).sum() == example.length


@pytest.mark.long
def test_what_is_computed_again(problem, compose, monkeypatch):
    written = []
    real = BlockStore.write

    def write(store, block, values):
        written.append(store.path.parent.name)
        real(store, block, values)

    monkeypatch.setattr(BlockStore, "write", write)

    def run(*keys):
        written.clear()
        compose("method=ekfac", *keys).attribute(problem)
        return set(written)

    run()
    assert run("method.per_token=1") == {"tokens"}
    assert run("method.per_token=1") == set()
    assert run("method.per_token=2") == {"tokens"}
    assert run("method.per_token=2", "method.damping=0.5") == {"influence", "tokens"}


def test_it_does_not_change_the_label(compose):
    assert compose("method=multistage", "method.per_token=3").label == "multistage"
    assert compose("method=ekfac", "method.per_token=3").label == "ekfac"


@pytest.mark.parametrize("method", ["ekfac", "multistage"])
def test_a_negative_number_is_refused(method, compose):
    with pytest.raises(UserError, match=r"method.per_token=-1: must be 0 \(off\) or"):
        compose(f"method={method}", "method.per_token=-1")


def test_kept_gradients_are_refused(compose):
    with pytest.raises(UserError, match=r"would not add up to the scores; set method.keep_gb=0"):
        compose("method=ekfac", "method.per_token=1", "method.keep_gb=1")
