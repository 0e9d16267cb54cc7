"""CPU time of capturing and projecting gradients over that of bare passes of the same batches.

The bare pass is what training costs: the whole model's forward pass with logits at every position, and a backward pass
that stores all weight gradients. Capturing hooks the same batches and projects every component's gradient to 16 x 16
dimensions from its factors (`factorised`), all inside the backward pass. Prints the ratio, and how low the floor goes:
capturing alone, and only the components of the upper half of the layers. Least CPU time of several rounds, one thread.

    python benchmarks/capture.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from tdaexp.data.examples import Example, Examples, collate
from tdaexp.gradients.features import project
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.projection import make_sketch
from tdaexp.models.components import component_map
from tdaexp.objectives.tokens import NextToken

ROUNDS, BATCHES, EXAMPLES, LENGTH, SIDE = 7, 4, 16, 128, 16
MODELS = {
    "toy (8 layers, hidden 64, vocabulary 1,024)": (1024, 64, 8, 4),
    "small (6 layers, hidden 256, vocabulary 8,192)": (8192, 256, 6, 4),
}


def build(vocabulary: int, hidden: int, layers: int, heads: int):
    """A random model of the OLMo architecture, and batches that predict their last quarter of tokens."""
    config = OlmoConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) >= LENGTH * 3 // 4
    batches = [
        Examples([Example(str(k), rng.integers(0, vocabulary, LENGTH), mask, "") for k in range(EXAMPLES)])
        for _ in range(BATCHES)
    ]
    return OlmoForCausalLM(config).eval(), batches


def bare(model, batches) -> None:
    for batch in map(collate, batches):
        logits = model(input_ids=batch.tokens, attention_mask=batch.attention, use_cache=False).logits[:, :-1]
        targets = batch.tokens[:, 1:].masked_fill(~batch.loss_mask[:, 1:], -100)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        model.zero_grad(set_to_none=True)


def captured(model, batches, components, sketches) -> None:
    def consume(found, factors) -> None:
        for component, one in zip(found, factors, strict=True):
            if sketches:
                project(one, sketches[component.name])

    for batch in batches:
        side = Gradients(model, components, batch, NextToken())
        with side.ready():
            side.capture(range(EXAMPLES), consume)


def seconds(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Least CPU time of each way; the ways take turns, so that a busy machine disturbs all alike."""
    best = dict.fromkeys(ways, float("inf"))
    for round_number in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if round_number:  # the first round warms up
                best[name] = min(best[name], time.process_time() - start)
    return best


def ratios(sizes: tuple[int, int, int, int]) -> dict[str, float]:
    """CPU seconds of the four ways on a model of the given sizes."""
    model, batches = build(*sizes)
    whole = component_map(model)
    number = [int(name.split(".")[1]) if name.startswith("layers.") else -1 for name in whole.names]
    upper = whole.select([name for name, k in zip(whole.names, number, strict=True) if k >= sizes[2] // 2])
    sketches = {one.name: make_sketch("factorised", one.name, one.matrix, SIDE * SIDE, 0) for one in whole.components}
    return seconds(
        {
            "bare forward and backward": lambda: bare(model, batches),
            "capture and project": lambda: captured(model, batches, whole, sketches),
            "capture alone": lambda: captured(model, batches, whole, {}),
            "capture and project, upper half of the layers": lambda: captured(model, batches, upper, sketches),
        }
    )


def main() -> None:
    torch.set_num_threads(1)
    for title, sizes in MODELS.items():
        print(f"{title}, {BATCHES} batches of {EXAMPLES} x {LENGTH} tokens")
        found = ratios(sizes)
        for name, value in found.items():
            print(f"  {name:>46}: {value:.3f} s, {value / found['bare forward and backward']:.3f} times bare")


if __name__ == "__main__":
    main()
