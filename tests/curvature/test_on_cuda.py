"""Gradients and curvature on a GPU are those of the CPU, in float32 and float64; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch
from gradient_oracle import VARIANTS, gradients_of, make_examples
from kronecker_oracle import samples_of

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.ggn import TrainingGGN
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.precondition import low_rank
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.gradients.features import component_features
from tdaexp.gradients.products import component_products
from tdaexp.gradients.projection import make_sketch
from tdaexp.models.components import component_map
from tdaexp.objectives import base
from tdaexp.selection.parts import names_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # as the commands do (`runtime.quiet`)
]
TRAIN, QUERIES = make_examples(0, 12), make_examples(1, 5, prefix="q")
PAIRS = np.tile(np.arange(12), (5, 1))
DTYPES = (torch.float32, torch.float64)
DOUBLE = ("gpt2-tied",)
"""Models that compute all in their own type; the others turn positions, norms or attention into float32 first."""


@pytest.fixture(params=["olmo-tied", "bloom-tied", "gpt2-tied", "gpt_neox-untied", "llama-bias"])
def variant(request):
    assert request.param in VARIANTS
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def on_both(request, variant, models, tmp_path):
    """Checks that a work's arrays are the same on both devices."""
    model = models(variant, request.param)
    limit = 1e-12 if request.param == torch.float64 and variant in DOUBLE else 2e-5

    def check(work) -> None:
        here = work(copy.deepcopy(model).to("cuda"), tmp_path / "cuda")
        for name, one in work(model, tmp_path / "cpu").items():
            off = np.abs(np.asarray(here[name]) - one).max() / np.abs(one).max()
            assert off < limit, (name, off)

    return check


@pytest.fixture
def same_labels(monkeypatch):
    """Labels that do not depend on rounding."""
    monkeypatch.setattr(base, "draw", lambda logits, numbers: (numbers * logits.shape[-1]).long().to(logits.device))


def test_products(on_both):
    def work(model, folder):
        sides = gradients_of(model, TRAIN), gradients_of(model, QUERIES)
        return {name: rows[:] for name, rows in component_products(*sides, PAIRS, store=folder).items()}

    on_both(work)


@pytest.mark.parametrize("kind", ["factorised", "srht", "sjlt"])
def test_sketches(kind, on_both):
    def work(model, folder):
        side = gradients_of(model, TRAIN)
        sketches = {one.name: make_sketch(kind, one.name, one.matrix, 16, 0) for one in side.components.components}
        found = component_features(side, sketches, store=folder, tokens_per_batch=64)
        return {"sketches": found.rows(found.place)}

    on_both(work)


@pytest.mark.parametrize("mode", ["ekfac", "kfac", "diagonal"])
def test_factors_and_scores(mode, on_both, same_labels):
    def work(model, folder):
        components = component_map(model)
        layers = layers_of(components.select(names_of(components, "blocks")))
        sides = [gradients_of(model, one, layers.map, reduction="sum") for one in (TRAIN, QUERIES)]
        factors = fit_factors(samples_of(model, layers, TRAIN, 64), FactorSettings(mode), store=folder / "factors")

        def precondition(name, gradient):
            return factors.precondition(name, gradient, Damping(relative=0.1))

        scores = pair_scores(LayerPairs(*sides, layers, precondition), PAIRS, store=folder / "scores")
        return {"scores": scores[:]}

    on_both(work)


def test_curvature_products(on_both):
    def work(model, folder):
        ggn = TrainingGGN(gradients_of(model, TRAIN), 64)
        dtype = next(model.parameters()).dtype
        vectors = torch.linspace(-1, 1, 2 * ggn.size, dtype=dtype, device="cpu").view(2, -1)
        return {"product": ggn.multiply(vectors.to(model.device)).cpu().numpy()}

    on_both(work)


def test_low_rank():
    matrices = torch.randn(40, 12, 30, generator=torch.Generator().manual_seed(0))
    for one in (matrices, matrices.transpose(1, 2)):
        here, there = (torch.einsum("nro,nri->noi", *low_rank(each, 4)).cpu() for each in (one.cuda(), one))
        torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
