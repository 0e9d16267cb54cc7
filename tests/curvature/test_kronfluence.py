"""Factors and scores against kronfluence on the same small GPT-NeoX, same tokens and same drawn labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradient_oracle import gradients_of
from kronecker_oracle import samples_of
from scipy.stats import spearmanr
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tdaexp.curvature.damping import Damping
from tdaexp.curvature.fit import FactorSettings, fit_factors
from tdaexp.curvature.layers import layers_of
from tdaexp.curvature.score import LayerPairs, pair_scores
from tdaexp.data.examples import Example, Examples
from tdaexp.models.components import component_map
from tdaexp.selection.parts import names_of

pytest.importorskip("kronfluence", reason="kronfluence (pip install --no-deps kronfluence) is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.long]
TRAIN, QUERIES, LENGTH, VOCABULARY = 60, 6, 20, 64


def small_neox() -> GPTNeoXForCausalLM:
    """Four layers, random weights large enough that attention is not uniform; biases too."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, use_cache=False, attention_dropout=0.0, hidden_dropout=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not bool((parameter == 1).all()):
                parameter.normal_(0, 0.15)
    return model.requires_grad_(False)


def sequences(count: int, seed: int, prefix: str) -> Examples:
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) > 0
    return Examples([Example(f"{prefix}{n}", rng.integers(0, VOCABULARY, LENGTH), mask, "") for n in range(count)])


class Rows(torch.utils.data.Dataset):
    """Inputs, true labels and drawn labels. The last token is not an input: its activation would count in A."""

    def __init__(self, examples: Examples, drawn: torch.Tensor | None) -> None:
        self.tokens = torch.from_numpy(np.stack([one.tokens for one in examples]))
        self.drawn = self.tokens[:, 1:] if drawn is None else drawn

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.tokens[index, :-1], "y": self.tokens[index, 1:], "drawn": self.drawn[index]}


def kronfluence_results(model, train, queries, drawn, modules, folder):
    """Covariances, Λ (each with its count) and scores of every pair, by kronfluence."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class LanguageTask(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch["x"]).logits
            labels = batch["drawn"] if sample else batch["y"]
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return modules

    task = LanguageTask()
    model = prepare_model(model, task)
    analyzer = Analyzer("a", model, task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    rows = Rows(train, drawn)
    analyzer.fit_all_factors("f", rows, per_device_batch_size=16, factor_args=FactorArguments("ekfac"))
    settings = ScoreArguments(damping_factor=None)  # a tenth of the mean of Λ
    analyzer.compute_pairwise_scores("s", "f", Rows(queries, None), rows, 6, 16, score_args=settings)
    factors = {**analyzer.load_covariance_matrices("f"), **analyzer.load_lambda_matrices("f")}
    return factors, analyzer.load_pairwise_scores("s")["all_modules"].numpy()


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.long
def test_the_same_factors_and_scores(tmp_path):
    train, queries = sequences(TRAIN, 0, "t"), sequences(QUERIES, 1, "q")
    model = small_neox()
    components = component_map(model)
    layers = layers_of(components.select(names_of(components, "blocks")))
    source = samples_of(model, layers, train, 16 * LENGTH)
    factors = fit_factors(source, FactorSettings(saves=1), store=tmp_path / "f")
    sides = [gradients_of(model, side, layers.map, reduction="sum") for side in (train, queries)]
    every = np.tile(np.arange(TRAIN), (QUERIES, 1))

    def precondition(name, gradient):
        return factors.precondition(name, gradient, Damping(relative=0.1))

    ours = pair_scores(LayerPairs(*sides, layers, precondition), every, store=tmp_path / "s")[:].sum(2)
    modules = [component.parts[0].module for component in layers.map.components]
    assert len(modules) == 16
    drawn = factors.labels()[0].long()
    theirs, scores = kronfluence_results(small_neox(), train, queries, drawn, modules, tmp_path)
    positions = TRAIN * (LENGTH - 1)
    for layer, component in zip(layers.layers, layers.map.components, strict=True):
        (part,) = component.parts
        rows = torch.arange(layer.outputs) if part.rows is None else torch.from_numpy(part.rows)
        mine = factors.covariance(layer.name)
        assert int(theirs["num_activation_covariance_processed"][part.module]) == positions == mine.tokens
        a = theirs["activation_covariance"][part.module] / positions
        s = theirs["gradient_covariance"][part.module] / positions
        assert relative(mine.inputs, a) < 1e-5
        assert relative(mine.outputs, s[rows][:, rows]) < 1e-5
        # Λ belongs to a basis; its sum, the mean squared norm of a gradient, does not.
        total = theirs["lambda_matrix"][part.module].double().sum() / TRAIN
        assert abs(float(factors[layer.name].spectrum.double().sum() / total) - 1) < 1e-5
    assert np.abs(ours - scores).max() <= 1e-4 * np.abs(scores).max()
    assert spearmanr(ours.ravel(), scores.ravel()).statistic >= 0.9999
    for mine, other in zip(ours, scores, strict=True):
        assert spearmanr(mine, other).statistic >= 0.9999
