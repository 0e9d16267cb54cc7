"""What each way to run passes faster gains: every lever on and off, as ratios within one run.

OLMo architecture (6 layers, hidden 256, vocabulary 8,192 unless said), float32, CPU time of one thread, the least of
several rounds in which the ways take turns; wall time where a disk is waited for, and for compiling. Rows:

    batches     capture of 48 examples in batches of 4,096 padded tokens, sorted by length, against file order, against
                one example at a time; the same for 384 short examples (median 30)
    logits      capture with logits at the predicted quarter of the positions only, against all positions
    backward    capture down to the middle layer and to the top one, against down to the embedding
    writing     blocks of sketches and of training gradients in 8 bits, written beside the next block's work and between
    compile     torch.compile of the decoder layers: without hooks, and as capture runs them

    python benchmarks/throughput.py [LENGTHS]

LENGTHS is a file of JSON lines with `prompt` and `completion`, four characters of which count as a token. Without
one lengths are log-normal (median 300). They are cut at 1,024.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM

from tdaexp.curvature.gradient_index import GradientIndex
from tdaexp.curvature.layers import layers_of
from tdaexp.data.examples import Example, Examples, collate, token_budget_batches
from tdaexp.gradients.capture import frozen
from tdaexp.gradients.features import component_features
from tdaexp.gradients.passes import Gradients
from tdaexp.gradients.projection import dimensions, make_sketch
from tdaexp.models.components import component_map
from tdaexp.objectives.base import cross_entropy
from tdaexp.objectives.tokens import NextToken
from tdaexp.runtime.blockstore import BlockStore
from tdaexp.selection.parts import names_of

ROUNDS, EXAMPLES, BUDGET, LONGEST = 3, 48, 4096, 1024
Ways = dict[str, Callable[[], None]]


def build(vocabulary: int = 8192, hidden: int = 256, layers: int = 6):
    """A random model of the OLMo architecture."""
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=LONGEST, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    return OlmoForCausalLM(config).eval()


def examples_of(lengths: np.ndarray, share: float = 0.25) -> Examples:
    """Random tokens in these lengths, of which the last `share` is predicted."""
    rng = np.random.default_rng(0)
    return Examples(
        [Example(str(k), rng.integers(0, 1024, n), np.arange(n) >= n * (1 - share), "") for k, n in enumerate(lengths)]
    )


def lengths_of(path: str | None, median: float = 300, count: int = EXAMPLES) -> np.ndarray:
    """Lengths [count] in tokens."""
    rng = np.random.default_rng(0)
    if path is None:
        found = np.exp(rng.normal(np.log(median), 0.8, count))
    else:
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        every = np.array([len(one["prompt"]) + len(one["completion"]) for one in lines]) / 4
        found = rng.choice(every, count, replace=False)
    return np.clip(found, 16, LONGEST).astype(np.int64)


def compare(ways: Ways, rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Least time of each way; the ways take turns, so that a busy machine disturbs all alike."""
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if number:  # the first round warms up
                best[name] = min(best[name], clock() - start)
    return best


def show(title: str, found: dict[str, float]) -> None:
    """One line per way, as a multiple of the first."""
    first = next(iter(found.values()))
    print(title)
    for name, value in found.items():
        print(f"  {name:>44}: {value:8.3f} s, {value / first:6.2f} times the first", flush=True)


def captured(model, components, examples: Examples, batches: list[list[int]], wide_mask: bool = False) -> None:
    """Run batches; with `wide_mask` logits are formed at every position, weights of the others being 0."""

    def loss(logits, targets, weights):
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (losses.view_as(targets) * weights * wanted[:, : weights.shape[1]]).sum(1)

    every = Examples([replace(one, loss_mask=np.ones(one.length, dtype=bool)) for one in examples])
    side = Gradients(model, components, examples, NextToken(), cross_entropy)
    if wide_mask:
        side = replace(side, examples=every, loss=loss)
    with side.ready():
        for members in batches:
            if wide_mask:
                wanted = collate([examples[index] for index in members]).loss_mask[:, 1:].to(torch.float32)
            side.capture(members, lambda *_: None)


def batches(lengths: np.ndarray) -> None:
    model, examples = build(), examples_of(lengths)
    components, order = component_map(model), np.argsort(lengths, kind="stable").tolist()
    sorted_, file_order = (token_budget_batches(lengths, one, BUDGET) for one in (order, range(len(lengths))))
    singles = [[index] for index in range(len(lengths))]
    padded = [sum(len(one) * lengths[one].max() for one in part) / lengths.sum() for part in (sorted_, file_order)]
    ways = {"sorted by length": sorted_, "file order": file_order, "one at a time": singles}
    show(
        f"batches: {len(lengths)} examples, median {np.median(lengths):.0f}, longest {lengths.max()}; padded size over "
        f"tokens: sorted {padded[0]:.2f}, file order {padded[1]:.2f}",
        compare({k: partial(captured, model, components, examples, v) for k, v in ways.items()}, 1),
    )


def logits() -> None:
    examples = examples_of(np.full(16, 128))
    for vocabulary in (1024, 8192, 50304):
        model = build(vocabulary, layers=4)
        components = component_map(model)
        parts = [list(range(16))]
        ways: Ways = {
            "where there is loss": partial(captured, model, components, examples, parts),
            "at all positions": partial(captured, model, components, examples, parts, wide_mask=True),
        }
        show(f"logits: vocabulary {vocabulary:,} = {vocabulary // 256} times hidden, 4 layers", compare(ways))


def backward() -> None:
    model, examples = build(), examples_of(np.full(16, 128))
    whole = component_map(model)
    number = {name: int(name.split(".")[1]) for name in whole.names if name.startswith("layers.")}
    parts = {"to the embedding": whole}
    for title, first in (("to the middle", 3), ("to the top layer", 5)):
        parts[title] = whole.select([name for name, k in number.items() if k >= first])
    ways = {k: partial(captured, model, v, examples, [list(range(16))]) for k, v in parts.items()}
    show("backward: down to the lowest component that is needed", compare(ways))


def writing() -> None:
    model, examples = build(layers=4), examples_of(np.full(64, 256))
    components = component_map(model)
    dims = dimensions({one.name: one.size for one in components.components}, 0.05, "proportional")
    sketches = {
        one.name: make_sketch("factorised", one.name, one.matrix, dims[one.name], 0) for one in components.components
    }
    layers = layers_of(components.select(names_of(components, "blocks")))
    side = Gradients(model, components, examples, NextToken())

    def sketch(folder: Path) -> None:
        component_features(side, sketches, store=folder, tokens_per_batch=2048)

    def keep(folder: Path) -> None:
        GradientIndex(side.of(layers.map), layers, folder, 100, 2048).fill()

    def run(work: Callable[[Path], None], beside: bool) -> None:
        usual = BlockStore.pending
        BlockStore.pending = lambda store, *some, **_: usual(store, *some, beside=beside)
        try:
            with tempfile.TemporaryDirectory() as folder:
                work(Path(folder) / "store")
        finally:
            BlockStore.pending = usual

    for title, work in (("sketches, factorised to 5 %", sketch), ("training gradients in 8 bits", keep)):
        ways: Ways = {
            "beside the next block": partial(run, work, True),
            "in between": partial(run, work, False),
        }
        show(f"writing (wall time): {title}", compare(ways, clock=time.perf_counter))


def compiled() -> None:
    examples = examples_of(np.full(16, 128))
    parts, batch = [list(range(16))], collate(list(examples))
    plain = build(layers=4)
    components = component_map(plain)

    def bare(model) -> None:
        with frozen(model):
            inputs = model.get_input_embeddings()(batch.tokens).requires_grad_()
            outputs = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            torch.autograd.grad(outputs.sum(), inputs)

    for title, way in (
        ("forward and backward without hooks", bare),
        ("capture", lambda model: captured(model, components, examples, parts)),
    ):
        torch._dynamo.reset()  # what was compiled without hooks does not run them
        fast = build(layers=4)
        for layer in fast.base_model.layers:
            layer.compile(dynamic=True)
        start = time.perf_counter()
        way(fast)
        print(f"compile: {title}: first pass {time.perf_counter() - start:.0f} s of wall time")
        ways: Ways = {"plain": partial(way, plain), "compiled": partial(way, fast)}
        show(f"compile: {title}", compare(ways))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    batches(lengths_of(sys.argv[1] if len(sys.argv) > 1 else None))
    batches(lengths_of(None, 30, 8 * EXAMPLES))
    logits()
    backward()
    writing()
    compiled()


if __name__ == "__main__":
    main()
