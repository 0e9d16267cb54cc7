"""Greedy answers in one forward pass against real greedy decoding."""

from __future__ import annotations

import numpy as np
import torch

from tdaexp.data.records import Record
from tdaexp.data.tokenise import tokenise, tokenise_prompts
from tdaexp.models.answers import greedy_answers
from tdaexp.models.scratch import Scratch


def test_an_answer_counts_when_greedy_decoding_writes_it():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    loaded = Scratch("olmo", sizes | {"initializer_range": 0.5}, vocab_size=300, context=32).start(["some words here"])
    prompts = [Record(f"q{n}", f"What is {'more ' * (n % 3)}number {n}?", "x") for n in range(12)]
    given = tokenise_prompts(prompts, loaded.tokenizer, template="plain", max_length=24)
    asked = []
    for number, (record, ids) in enumerate(zip(prompts, given, strict=True)):
        tokens = torch.from_numpy(ids)[None]
        for _ in range(3):
            nearest = loaded.model(tokens).logits[0, -1].argmax()
            tokens = torch.cat([tokens, nearest[None, None]], dim=1)
        written = tokens[0, len(ids) :].clone()
        if number % 2:
            written[number % 3] = (written[number % 3] + 1) % 256  # one token of three is wrong
        example = tokenise([record], loaded.tokenizer, template="plain", max_length=24)[0]
        full = np.concatenate([ids, written.numpy()])
        asked.append(type(example)(record.id, full, np.arange(len(full)) >= len(ids), ""))
    examples = type(tokenise(prompts, loaded.tokenizer, template="plain", max_length=24))(asked)
    wanted = [number % 2 == 0 for number in range(12)]
    assert greedy_answers(loaded, examples, 40).tolist() == wanted
    assert greedy_answers(loaded, examples, 100_000).tolist() == wanted
