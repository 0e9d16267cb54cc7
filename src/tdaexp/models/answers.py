"""Does a model answer a question by itself? Greedy decoding gives an answer when its every token is the likeliest."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from tdaexp.data.examples import Examples, collate, token_budget_batches
from tdaexp.models.forward import all_logits
from tdaexp.models.loaded import LoadedModel
from tdaexp.runtime.deferred import Deferred
from tdaexp.runtime.progress import track


def greedy_answers(loaded: LoadedModel, examples: Examples, tokens_per_batch: int) -> np.ndarray:
    """Tell for each example whether greedy decoding from its prompt would write its completion: [N] bool.

    One forward pass per example: the most probable token is the completion's at every position that carries loss, an
    end-of-text token included. Of a classifier: whether its likeliest class is the example's.
    """
    device = loaded.model.device
    by_length = np.argsort(examples.lengths, kind="stable").tolist()
    batches = token_budget_batches(examples.lengths, by_length, tokens_per_batch)
    right, later = np.zeros(len(examples), dtype=bool), Deferred()
    for batch in track(batches, "greedy answers", len(batches)):
        inputs = collate([examples[i] for i in batch]).to(device)
        with torch.no_grad():  # what is last is never read, and may be no token
            logits = all_logits(loaded.model, inputs.tokens[:, :-1], inputs.attention[:, :-1])
        hit = logits.argmax(-1) == inputs.tokens[:, 1:]
        later.add(partial(right.__setitem__, batch), (hit | ~inputs.loss_mask[:, 1:]).all(1))
    later.flush()
    return right
