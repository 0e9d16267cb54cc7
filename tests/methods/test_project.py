"""Random projection as a method: close to the full gradient, unbiased, repeatable, and what it refuses."""

import numpy as np
import pytest
import torch

from tdaexp import influence
from tdaexp.runtime.errors import UserError
from tdaexp.selection.products_file import read_products

KINDS = ["factorised", "srht", "sjlt", "trak"]
SEEDS = range(6)


@pytest.fixture(scope="module")
def problem(make_problem, tmp_path_factory):
    return make_problem(tmp_path_factory.mktemp("cache"), dtype=torch.float64, tokens_per_batch=4096)


@pytest.fixture(scope="module")
def full(problem, compose):
    return compose("method=full").attribute(problem)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_products_estimate_those_of_the_full_gradient(problem, compose, full, kind):
    """The mean over seeds is right, and products are as close as Johnson and Lindenstrauss have it.

    A k-dimensional sketch of x and y has E<Sx,Sy> = <x,y> and a variance of at most 2 |x|² |y|² / k; the
    Kronecker product of two, one per side, at most (1 + 2/k_out)(1 + 2/k_in) - 1 in place of 2/k.
    """
    scale = np.sqrt(full["query_sq"].values[:, None] * full["train_sq"].values)
    overrides = ("method=project", f"method.projection={kind}", "budget=1")
    errors, squares = [], []
    for seed in SEEDS:
        found = compose(*overrides, f"seed={seed}").attribute(problem)
        errors.append((found["influence"].values - full["influence"].values) / scale)
        squares.append(float((found["query_sq"] / full["query_sq"]).mean()))
    dims = {name: sketch.dim for name, sketch in compose(*overrides).sketches(problem.components()).items()}
    variance = np.array([2 / dims[name] for name in full["component"].values])
    if kind == "factorised":
        sides = np.sqrt(np.array([dims[name] for name in full["component"].values]))
        variance = (1 + 2 / (sides / 2)) * (1 + 2 / (sides * 2)) - 1  # up to 1 : 4 between the sides
    bound = np.sqrt(variance)
    errors = np.stack(errors)
    assert (np.sqrt((errors**2).mean(axis=(0, 1, 2))) <= 1.3 * bound).all()
    assert (np.abs(errors) <= 6 * bound).all()
    mean = np.array(squares).mean()
    assert mean == pytest.approx(1, abs=max(1e-9, 4 * np.std(squares, ddof=1) / np.sqrt(len(SEEDS))))
    assert mean == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_budget_is_less_exact_and_a_seed_matters(problem, compose, full, kind):
    wanted = influence.scores(full).values

    def error(budget, seed=0):
        method = compose("method=project", f"method.projection={kind}", f"budget={budget}", f"seed={seed}")
        return influence.scores(method.attribute(problem)).values - wanted

    rms = {budget: np.sqrt(np.mean([error(budget, seed) ** 2 for seed in range(3)])) for budget in (0.02, 1)}
    assert rms[1] < 0.5 * rms[0.02]
    assert not np.array_equal(error(0.02, 0), error(0.02, 1))


def test_dimensions_and_label(problem, compose):
    small = compose("method=project", "budget=0.1")
    total = problem.components().sizes.sum()
    assert small.label == "project (factorised, 10 %)"
    attrs = small.attribute(problem).attrs
    assert 0 < attrs["dimensions"] <= 0.11 * total and attrs["share"] == attrs["dimensions"] / total
    assert compose("method=project").label == "project (factorised, 5 %)"
    paper = compose("method=project_paper", "budget=0.3")
    assert paper.label == "project (trak, 30 %)"
    dims = [sketch.dim for sketch in paper.sketches(problem.components()).values()]
    assert min(dims) >= 512 and all(dim % 512 == 0 for dim in dims)


def test_components_are_sketched_alike_whatever_others_there_are(problem, compose):
    """Seeds belong to names: a restriction leaves a component's products what they are."""
    whole = compose("method=project", "budget=0.5").attribute(problem)
    names = ["layers.1.mlp.up", "layers.0.attn.v"]
    part = compose("method=project", "budget=0.5", f"method.components=[{','.join(names)}]").attribute(problem)
    assert list(part["component"].values) == [n for n in whole["component"].values if n in names]
    np.testing.assert_allclose(
        part["influence"], whole["influence"].sel(component=part["component"]), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.projection=srth", "unknown projection 'srth'; did you mean 'srht'"),
        ("method.rule=papr", "unknown rule 'papr'; did you mean 'paper'"),
        ("method.distribution=gauss", "method.distribution: unknown distribution 'gauss'"),
        ("method.reduction=max", "method.reduction: unknown reduction 'max'"),
        ("budget=0", "budget=0"),
        ("budget=1.5", "budget=1.5"),
    ],
)
def test_bad_values_are_refused_before_anything_runs(compose, override, message):
    with pytest.raises(UserError, match=message):
        compose("method=project", override)


@pytest.mark.parametrize("kind", ["srht", "sjlt"])
def test_choices_that_do_not_go_together(compose, kind):
    with pytest.raises(UserError, match=rf"method.projection={kind}: .* no 'normal' form"):
        compose("method=project", f"method.projection={kind}", "method.distribution=normal")


def test_stored_products_are_not_enough(products_file, compose):
    with pytest.raises(UserError, match=r"method 'project' needs a model; on stored products use select, full"):
        compose("method=project").from_products(read_products(products_file))
