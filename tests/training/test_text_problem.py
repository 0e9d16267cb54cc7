"""Trained again on all texts, a language model is the one that Lightning trained."""

import dataclasses

import numpy as np
import pytest
import torch

from tdaexp.training.fit import fit
from tdaexp.training.retrain import batches_without, retrain
from tdaexp.training.text_problem import Texts


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("batches", ["stream", "epochs"])
def test_on_all_texts_it_is_lightnings_training(
    config, records, start, examples, settings, weights, tmp_path, clip, batches
):
    keys = dataclasses.replace(settings, clip=clip, batches=batches)
    wanted = weights(fit(start, examples, keys, folder=tmp_path, seed=3))
    again = config.start([record.text for record in records])
    problem = Texts(again.model, examples, again.tokenizer.pad_token_id or 0)
    retrain(problem, keys, batches_without(problem, keys, 3, np.ones(len(examples), dtype=bool)))
    for name, one in again.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(one, wanted[name], rtol=0, atol=2e-5, msg=name)


def test_a_text_that_is_left_out_has_weight_zero(start, examples, settings):
    """The loss of a batch less one text, with the weights of the whole batch, is the whole's less that text's part."""
    problem = Texts(start.model, examples)
    member = np.arange(len(examples)) != 2
    batch = batches_without(problem, dataclasses.replace(settings, batch_size=len(examples)), 3, member)[0]
    every = np.arange(len(examples))
    with torch.no_grad():
        losses = problem.losses(every)
    weights = problem.weights(every)
    left = problem.losses(batch.indices).detach() @ torch.from_numpy(batch.weights).float()
    assert float(left) == pytest.approx(
        float(losses @ torch.from_numpy(weights).float() - losses[2] * weights[2]), rel=1e-5
    )
    counted = sum(int(one.loss_mask[1:].sum()) for one in examples)
    assert weights.tolist() == [1 / counted] * len(examples)
