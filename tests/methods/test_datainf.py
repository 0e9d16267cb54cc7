"""DataInf against a dense transcription in float64: every (g gᵀ + λI)⁻¹ as a matrix, and their mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapted import by_peft, gradients, write_adapter
from tiny_problem import explicit_gradients, with_model

from tdaexp import influence
from tdaexp.gradients import second_moment
from tdaexp.methods.datainf import DataInf
from tdaexp.models.loaded import quiet_transformers
from tdaexp.models.pretrained import Pretrained
from tdaexp.runtime.errors import UserError

NAMES = ["layers.0.attn.q", "layers.1.attn.o"]
CHOSEN = f"method.components=[{','.join(NAMES)}]"


def transcribed(queries: torch.Tensor, train: torch.Tensor, relative: float = 0.1) -> tuple[np.ndarray, float]:
    """q · mean of inverses · z [Q, N] for one matrix's gradients [·, d], and λ."""
    amount = float(relative * train.square().sum() / train.numel())
    eye = torch.eye(train.shape[1], dtype=train.dtype)
    mean = torch.stack([torch.linalg.inv(amount * eye + torch.outer(g, g)) for g in train]).mean(0)
    return (queries @ mean @ train.T).numpy(), amount


@pytest.mark.parametrize("chunk", [1 << 28, 1 << 14])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scores_are_those_of_the_equation(chunk, reduction, make_problem, compose, monkeypatch, tmp_path):
    monkeypatch.setattr(second_moment, "CHUNK_BYTES", chunk)  # the smaller: some batches are cut
    problem = make_problem(tmp_path, dtype=torch.float64)
    found = compose("method=datainf", CHOSEN, f"method.reduction={reduction}").attribute(problem)
    sides = [explicit_gradients(problem.loaded, side, reduction) for side in (problem.queries, problem.train)]
    for column, name in enumerate(NAMES):
        wanted, amount = transcribed(*(torch.stack([row[name] for row in side]) for side in sides))
        wanted = np.take_along_axis(wanted, problem.pairs, axis=1)
        np.testing.assert_allclose(found["influence"].values[..., column], wanted, atol=1e-9 * np.abs(wanted).max())
        assert float(found["component_damping"][column]) == pytest.approx(amount, rel=1e-9)


def test_an_adapter_s_matrices_are_blocks_each_for_itself(loaded, make_problem, compose, tmp_path):
    with quiet_transformers():
        loaded.model.save_pretrained(tmp_path / "base")
        loaded.tokenizer.save_pretrained(tmp_path / "base")
    place = tmp_path / "base", write_adapter(tmp_path / "base", tmp_path / "adapter")
    adapted = Pretrained(str(place[0]), adapter=str(place[1])).load(dtype=torch.float64)
    problem, model = with_model(make_problem(tmp_path, dtype=torch.float64), adapted), by_peft(*place)
    found = compose("method=datainf", "method.relative_damping=0.5").attribute(problem)
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    queries, train = (gradients(model, side).split(sizes, 1) for side in (problem.queries, problem.train))
    wanted = sum(transcribed(q, z, 0.5)[0] for q, z in zip(queries, train, strict=True))
    wanted = np.take_along_axis(wanted, problem.pairs, axis=1)
    assert len(found["component"]) == len(sizes) == 8
    np.testing.assert_allclose(influence.scores(found).values, wanted, atol=1e-9 * np.abs(wanted).max())


def test_much_damping_ranks_as_the_dot_product(problem, compose):
    found = influence.scores(compose("method=datainf", "method.damping=1e9").attribute(problem)).values
    wanted = influence.scores(compose("method=dot", "method.part=blocks").attribute(problem)).values
    np.testing.assert_allclose(found * 1e9, wanted, atol=1e-5 * np.abs(wanted).max())


def test_keys_that_make_no_sense_and_labels(compose):
    for keys in ("method.relative_damping=0", "method.damping=-1"):
        with pytest.raises(UserError, match=r"must be above 0; try method.relative_damping=0.1"):
            compose("method=datainf", keys)
    assert compose("method=datainf", "method.damping=0.5", "method.part=all").label == "datainf (λ 0.5, all)"


def test_a_component_without_a_gradient_has_no_damping_of_its_own(problem, monkeypatch):
    none = torch.cat([torch.ones(256), torch.zeros(256)])
    monkeypatch.setattr("tdaexp.methods.datainf.second_moment", lambda *_, **__: none)
    with pytest.raises(
        UserError, match=r"no training example has a gradient of 'layers.1.attn.o'.*method.damping=1e-6"
    ):
        DataInf(components=NAMES).attribute(problem)
